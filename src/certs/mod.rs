//! Certificates: of the registry listener, and of nodes to each other. Who signs them, whose one
//! is, the files that they are read from, and what TLS makes of them.
//!
//! What must stay true: between nodes a chain is checked against the CAs that this node trusts now,
//! and the name in a certificate against the node that was called; a file that cannot be used never
//! takes the place of what works; no key is written where others can read it, nor into a log.

mod authority;
mod files;
mod leaf;
mod listener;
mod peers;
mod store;
#[cfg(test)]
mod tests;
mod token;
mod verify;

pub use authority::Authority;
pub use authority::Names;
pub use authority::key_hash;
pub use authority::new_key;
pub use authority::request;
pub use files::CertFiles;
pub use files::FileError;
pub use files::PeerFiles;
pub use files::certificates;
pub use files::certified;
pub use files::write_private;
pub use leaf::Bound;
pub use leaf::PeerCertificate;
pub use leaf::Report;
pub use listener::ListenerTls;
pub use peers::Material;
pub use peers::PeerTls;
pub use peers::Wire;
pub use peers::host;
pub use peers::in_host;
pub use store::Store;
pub use store::certificate_pem;
pub use token::JoinToken;
pub use token::TokenInvalid;
pub use verify::refusal;

use rustls::crypto::CryptoProvider;
use std::sync::Arc;
use std::time::Duration;

/// What every name of a node to other nodes ends with; it is in no zone, since it is never looked
/// up.
const DOMAIN: &str = "roadstead.internal";

/// From the first byte of a connection to the end of its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a certificate is good that this cluster's CA signs: a year.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Seconds instead, for tests that cannot wait.
const TEST_LIFETIME: &str = "ROADSTEAD_TEST__CERT_SECONDS";

/// The one provider of cryptography, given to each configuration instead of set for the process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Of a certificate that is issued now.
pub fn lifetime() -> Duration {
    let seconds = std::env::var(TEST_LIFETIME)
        .ok()
        .and_then(|text| text.parse().ok());
    seconds.map_or(LIFETIME, Duration::from_secs)
}
