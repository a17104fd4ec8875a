//! TLS of the registry listener: one certificate, read again when its files change; HTTP/2 and
//! HTTP/1.1; TLS 1.2 and newer.

use super::HANDSHAKE;
use super::files;
use super::files::CertFiles;
use super::files::FileError;
use super::leaf::Report;
use super::provider;
use crate::tasks::Tasks;
use rustls::ServerConfig;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use std::io;
use std::sync::Arc;
use std::sync::RwLock;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Cheap to clone.
#[derive(Clone)]
pub struct ListenerTls {
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().expect("no panic while held").clone())
    }
}

impl ListenerTls {
    pub fn open(files: CertFiles, tasks: &Tasks) -> Result<ListenerTls, FileError> {
        let watched = vec![files.cert.clone(), files.key.clone()];
        let stamps = files::stamps(&watched);
        let current = Arc::new(Current(RwLock::new(Arc::new(files::certified(&files)?))));
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
        let mut config = config
            .map_err(|error| FileError::Unusable {
                path: files.cert.clone(),
                why: error.to_string(),
            })?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let shown = current.clone();
        let until = move || {
            let shown = shown.0.read().expect("no panic while held").clone();
            Some(Report::parse(&shown.cert[0])?.not_after)
        };
        files::watch("registry", watched, stamps, tasks, until, move || {
            let read = Arc::new(files::certified(&files)?);
            *current.0.write().expect("no panic while held") = read;
            Ok(())
        });
        Ok(ListenerTls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
