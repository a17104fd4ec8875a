//! Mutual TLS between nodes. What a node shows and trusts can be replaced while it runs: each new
//! connection takes what counts then, so a rotation needs no restart. TLS 1.3 only, and without
//! resumption, which would carry on what an older certificate said.
//!
//! A node is called as `NODE.REGION.roadstead.internal`, a name that is never looked up: so one
//! client of HTTP can speak to all nodes, and check for each that it is the one that was meant.

use super::DOMAIN;
use super::HANDSHAKE;
use super::files;
use super::files::FileError;
use super::files::PeerFiles;
use super::leaf::PeerCertificate;
use super::leaf::Report;
use super::provider;
use super::verify::Verifier;
use super::verify::check_server_chain;
use crate::tasks::Tasks;
use crate::topology::NodeId;
use crate::topology::RegionName;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::SystemTime;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;

/// What a node shows of itself, and whom it trusts.
pub struct Material {
    ca: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    own: Option<(Arc<CertifiedKey>, PeerCertificate)>,
}

impl Material {
    /// Refuses what no other node would take.
    pub fn load(files: &PeerFiles) -> Result<Material, FileError> {
        let mut material = Material::trusting(files::certificates(&files.ca)?, &files.ca)?;
        let own = files::certified(&files.own)?;
        let unusable = |why: String| FileError::Unusable {
            path: files.own.cert.clone(),
            why,
        };
        let (leaf, between) = own.cert.split_first().expect("a chain is never empty");
        let parsed = PeerCertificate::parse(leaf).map_err(|error| unusable(error.to_string()))?;
        let now = UnixTime::now();
        let ca = files.ca.display();
        let untrusted = |error| {
            unusable(format!(
                "{error}; it must be good now, for servers and for clients, and signed by a CA in \
                 {ca} ({}): `roadstead certs check` shows it",
                material.ca_names()
            ))
        };
        check_server_chain(&material.roots, leaf, between, now).map_err(untrusted)?;
        let as_client = material.clients.verify_client_cert(leaf, between, now);
        as_client.map_err(untrusted)?;
        material.own = Some((Arc::new(own), parsed));
        Ok(material)
    }

    /// Of a node that has no certificate yet.
    pub fn pinned(ca: CertificateDer<'static>) -> Result<Material, FileError> {
        Material::trusting(vec![ca], Path::new("the join token"))
    }

    fn trusting(ca: Vec<CertificateDer<'static>>, path: &Path) -> Result<Material, FileError> {
        let unusable = |why: String| FileError::Unusable {
            path: path.to_owned(),
            why,
        };
        let mut roots = RootCertStore::empty();
        for certificate in &ca {
            if Report::parse(certificate).is_none_or(|report| !report.is_ca) {
                let why = "it is not the certificate of a CA; put only those in peer.ca";
                return Err(unusable(why.to_owned()));
            }
            let added = roots.add(certificate.clone());
            added.map_err(|error| unusable(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let clients = clients
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Material {
            ca,
            roots,
            clients,
            own: None,
        })
    }

    pub fn ca(&self) -> &[CertificateDer<'static>] {
        &self.ca
    }

    pub fn leaf(&self) -> Option<&PeerCertificate> {
        self.own.as_ref().map(|(_, leaf)| leaf)
    }

    pub(super) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    pub(super) fn clients(&self) -> &dyn ClientCertVerifier {
        &*self.clients
    }

    pub(super) fn own(&self) -> Option<Arc<CertifiedKey>> {
        self.own.as_ref().map(|(own, _)| own.clone())
    }

    /// For an error.
    pub(super) fn ca_names(&self) -> String {
        let names = self.ca.iter().filter_map(|ca| Report::parse(ca));
        let names: Vec<String> = names.map(|ca| ca.subject).collect();
        names.join("; ")
    }
}

/// What counts now.
#[derive(Clone)]
pub(super) struct Current(Arc<RwLock<Arc<Material>>>);

impl Current {
    pub fn get(&self) -> Arc<Material> {
        self.0.read().expect("no panic while held").clone()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct PeerTls {
    current: Current,
    acceptor: TlsAcceptor,
    client: Arc<ClientConfig>,
}

/// How a request came to the peer listener; in its extensions.
#[derive(Clone, Debug)]
pub enum Wire {
    /// On loopback, from a node without certificates.
    Plain,
    /// With the certificate of the caller, if it has one.
    Tls(Option<Arc<PeerCertificate>>),
}

/// The name by which a node is called.
pub fn host(node: NodeId, region: &RegionName) -> String {
    format!("{node}.{region}.{DOMAIN}")
}

/// Of a name that `host` makes.
pub fn in_host(name: &str) -> Option<(NodeId, RegionName)> {
    let name = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
    let (node, region) = name.split_once('.')?;
    Some((node.parse().ok()?, region.parse().ok()?))
}

impl PeerTls {
    pub fn new(material: Material) -> Result<PeerTls, rustls::Error> {
        let current = Current(Arc::new(RwLock::new(Arc::new(material))));
        let verifier = Arc::new(Verifier::new(current.clone()));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(current.clone()));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(current.clone()));
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(PeerTls {
            current,
            acceptor: TlsAcceptor::from(Arc::new(server)),
            client: Arc::new(client),
        })
    }

    /// Takes the place of what counted before, for each connection from now on.
    pub fn set(&self, material: Material) {
        *self.current.0.write().expect("no panic while held") = Arc::new(material);
    }

    pub fn material(&self) -> Arc<Material> {
        self.current.get()
    }

    /// Reads the files again when they change. `is_renewed`: by this node itself; else its operator
    /// is told when they end.
    pub fn watch(&self, files: PeerFiles, is_renewed: bool, tasks: &Tasks) {
        let watched: Vec<PathBuf> = vec![
            files.ca.clone(),
            files.own.cert.clone(),
            files.own.key.clone(),
        ];
        let stamps = files::stamps(&watched);
        let me = self.clone();
        let shown = self.clone();
        let until = move || match is_renewed {
            true => None,
            false => shown.material().leaf().map(|leaf| leaf.not_after),
        };
        files::watch("peer", watched, stamps, tasks, until, move || {
            me.set(Material::load(&files)?);
            Ok(())
        });
    }

    /// For a client of HTTP that is given hosts of `host`.
    pub fn client(&self) -> ClientConfig {
        (*self.client).clone()
    }

    /// The caller's certificate, if it shows one: checked against the CAs.
    pub async fn accept<S>(
        &self,
        stream: S,
    ) -> io::Result<(impl AsyncRead + AsyncWrite + Send + Unpin + use<S>, Wire)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let shaken = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        let stream = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let shown = stream.get_ref().1.peer_certificates();
        let caller = match shown.and_then(<[_]>::first) {
            None => None,
            Some(leaf) => {
                let parsed = PeerCertificate::parse(leaf);
                Some(Arc::new(parsed.map_err(io::Error::other)?))
            }
        };
        Ok((stream, Wire::Tls(caller)))
    }

    /// To a node, or, by its address only, to any of the cluster.
    pub async fn connect<S>(
        &self,
        stream: S,
        target: Option<(NodeId, RegionName)>,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let name = target.map_or(DOMAIN.to_owned(), |(node, region)| host(node, &region));
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.client.clone());
        let shaken = tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await;
        shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The certificate of whoever is there, if each side takes the other's.
    pub async fn look<S>(&self, stream: S) -> io::Result<CertificateDer<'static>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let name = ServerName::try_from(DOMAIN).map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.client.clone());
        let mut stream = connector.connect(name, stream).await?;
        // What the server says of our certificate comes after the handshake: it answers a
        // request, or ends the connection.
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await?;
        stream.read_exact(&mut [0]).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let leaf = shown.and_then(<[_]>::first).cloned();
        leaf.ok_or_else(|| io::Error::other("it shows no certificate"))
    }

    /// Whether this node's own certificate is still good, and not for long.
    pub fn is_to_be_renewed(&self) -> bool {
        let material = self.current.get();
        material
            .leaf()
            .is_some_and(|leaf| leaf.is_to_be_renewed(SystemTime::now()))
    }
}
