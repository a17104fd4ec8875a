//! Certificates and keys in PEM files: read with errors that name the file and the way out, and
//! read again when a file changes.

use super::provider;
use crate::tasks::Tasks;
use rustls::InconsistentKeys;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// A changed file is used after it has stayed the same from one look to the next: certificate and
/// key are seldom replaced at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// An operator is told of a certificate that ends, while there is time to act.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
const TELL_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What a server shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a node shows to other nodes, and the CAs (one or several) that it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFiles {
    pub ca: PathBuf,
    pub own: CertFiles,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("read {path}: give a file that exists and that this user may read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {path}: give a directory that this user may write to")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} has no certificate: give a PEM file with -----BEGIN CERTIFICATE-----, the node's own first"
    )]
    NoCertificate { path: PathBuf },
    #[error(
        "{path} has no private key: give a PEM file with one key that is not protected by a password"
    )]
    NoKey { path: PathBuf },
    #[error(
        "the key in {key} does not belong to the certificate in {cert}: give the two that were made together"
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("the certificate in {path} cannot be used: {why}")]
    Unusable { path: PathBuf, why: String },
}

/// All certificates in a file, in their order; at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = read(path)?;
    let none = || FileError::NoCertificate {
        path: path.to_owned(),
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(none)
}

/// A certificate, with those between it and its CA, and its key.
pub fn certified(files: &CertFiles) -> Result<CertifiedKey, FileError> {
    let chain = certificates(&files.cert)?;
    let key = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| FileError::NoKey {
        path: files.key.clone(),
    })?;
    match CertifiedKey::from_der(chain, key, &provider()) {
        Ok(certified) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(FileError::Mismatch {
                cert: files.cert.clone(),
                key: files.key.clone(),
            })
        }
        Err(error) => Err(FileError::Unusable {
            path: files.cert.clone(),
            why: format!(
                "{error}; use an ECDSA, Ed25519 or RSA key and an X.509 certificate for it"
            ),
        }),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// In one step, readable by its owner only, and synced.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    let new = path.with_extension("new");
    let write = || {
        let mut file = std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                std::fs::File::open(parent)?.sync_all()
            }
            _ => Ok(()),
        }
    };
    write().map_err(failed)
}

/// When a file was written, as which file, and how long it is.
pub(super) type Stamp = Option<(i64, i64, u64, u64)>;

pub(super) fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.mtime(), found.mtime_nsec(), found.ino(), found.len()))
    };
    files.iter().map(stamp).collect()
}

/// Calls `reload` after the files changed from what they were when they were `read` first. What it
/// cannot use is told once, and what is in use stays. `until`: when that ends, if its operator is to
/// be told.
pub(super) fn watch(
    what: &'static str,
    files: Vec<PathBuf>,
    read: Vec<Stamp>,
    tasks: &Tasks,
    until: impl Fn() -> Option<SystemTime> + Send + 'static,
    reload: impl Fn() -> Result<(), FileError> + Send + 'static,
) {
    let owner = tasks.clone();
    tasks.spawn(async move {
        let mut used = read;
        let mut last = used.clone();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut told: Option<Instant> = None;
        loop {
            tokio::select! {
                () = owner.stopped() => return,
                _ = look.tick() => {}
            }
            let left = until().map(|until| until.duration_since(SystemTime::now()));
            if let Some(left) = left.map(Result::unwrap_or_default)
                && left < SOON
                && told.is_none_or(|told| told.elapsed() > TELL_EVERY)
            {
                told = Some(Instant::now());
                let days = left.as_secs() / (24 * 3600);
                tracing::warn!(what, days, "a certificate is good for few days more: replace its files; they are read while the node runs");
            }
            let now = stamps(&files);
            let is_settled = now == last;
            last.clone_from(&now);
            if now == used || !is_settled {
                continue;
            }
            used = now;
            match reload() {
                Ok(()) => tracing::info!(what, "read the changed certificate files"),
                Err(error) => tracing::warn!(
                    what,
                    error = &error as &dyn std::error::Error,
                    "a changed certificate file cannot be used; what was read before stays in use"
                ),
            }
        }
    });
}
