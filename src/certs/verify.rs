//! Who is at the other end? Chains are checked against what this node trusts now, and names
//! against the node that was called; a no says what was expected and what was found.

use super::DOMAIN;
use super::leaf::PeerCertificate;
use super::peers::Current;
use super::peers::in_host;
use super::provider;
use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::Error;
use rustls::OtherError;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::ClientHello;
use rustls::server::ParsedCertificate;
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use std::io;
use std::sync::Arc;

/// Both sides of a connection between nodes.
#[derive(Debug)]
pub(super) struct Verifier {
    current: Current,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stranger(String);

fn stranger(what: String) -> Error {
    let error = OtherError(Arc::new(Stranger(what)));
    Error::InvalidCertificate(CertificateError::Other(error))
}

/// The other side was reached, and the certificates of one of the two do not do: what was wrong.
/// None: something else is.
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        let found = error
            .downcast_ref::<Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<Error>()));
        match found {
            Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
                return Some(why.to_string());
            }
            Some(Error::InvalidCertificate(_) | Error::AlertReceived(_)) => {
                return found.map(ToString::to_string);
            }
            _ => cause = error.source(),
        }
    }
    None
}

/// Checks that a chain leads to one of the CAs, for a server.
pub(super) fn check_server_chain(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, between, now, algorithms)
}

impl Verifier {
    pub fn new(current: Current) -> Verifier {
        Verifier {
            current,
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let material = self.current.get();
        check_server_chain(material.roots(), leaf, between, now).map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => stranger(format!(
                "its certificate is not signed by a CA that this node trusts ({}): is it of this \
                 cluster, and is its CA in peer.ca?",
                material.ca_names()
            )),
            error => stranger(format!("its certificate is not accepted: {error}")),
        })?;
        let found = PeerCertificate::parse(leaf).map_err(|error| stranger(error.to_string()))?;
        let ServerName::DnsName(name) = name else {
            return Err(stranger("nodes are called by name".to_owned()));
        };
        if name.as_ref() == DOMAIN {
            // Called by address: any node of the cluster.
            return Ok(ServerCertVerified::assertion());
        }
        let (node, region) = in_host(name.as_ref())
            .ok_or_else(|| stranger(format!("{} is not the name of a node", name.as_ref())))?;
        if found.region != region {
            return Err(stranger(format!(
                "its certificate is of region {}, and region {region} was expected at that address",
                found.region
            )));
        }
        match found.node().filter(|found| *found != node) {
            Some(found) => Err(stranger(format!(
                "its certificate is of node {found}, and node {node} was expected at that address"
            ))),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// A node that joins has none yet. What it may do without is decided for each call.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let material = self.current.get();
        material.clients().verify_client_cert(leaf, between, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get().own()
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get().own()
    }

    fn has_certs(&self) -> bool {
        self.get().own().is_some()
    }
}
