//! `DATA_DIR/peer`: the key and certificate of a node whose cluster signs them itself, and its CA.
//! Readable by its owner only. The certificate is written last: where it is, the others are.

use super::authority::Authority;
use super::authority::Names;
use super::files::CertFiles;
use super::files::FileError;
use super::files::PeerFiles;
use super::files::read;
use super::files::write_private;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    pub fn new(data_dir: &Path) -> Store {
        Store {
            dir: data_dir.join("peer"),
        }
    }

    /// Whether there is a certificate.
    pub fn is_filled(&self) -> bool {
        self.dir.join("cert.pem").exists()
    }

    pub fn files(&self) -> PeerFiles {
        PeerFiles {
            ca: self.dir.join("ca.pem"),
            own: CertFiles {
                cert: self.dir.join("cert.pem"),
                key: self.dir.join("key.pem"),
            },
        }
    }

    /// The key of this node, made when there is none: the same one each time it asks for a
    /// certificate.
    pub fn key(&self) -> Result<SecretString, FileError> {
        let path = self.files().own.key;
        if path.exists() {
            let pem = String::from_utf8(read(&path)?);
            return pem
                .map(SecretString::from)
                .map_err(|_| FileError::NoKey { path });
        }
        self.create_dir()?;
        let key = super::new_key().map_err(|error| unusable(&path, &error))?;
        write_private(&path, key.expose_secret().as_bytes())?;
        Ok(key)
    }

    /// What was issued for the key of this node.
    pub fn save(&self, ca: &[Vec<u8>], certificate: &[u8]) -> Result<(), FileError> {
        let files = self.files();
        self.create_dir()?;
        let bundle: String = ca.iter().map(|ca| pem("CERTIFICATE", ca)).collect();
        write_private(&files.ca, bundle.as_bytes())?;
        self.save_certificate(certificate)
    }

    /// A further certificate for the same key. What else is trusted stays so.
    pub fn save_certificate(&self, certificate: &[u8]) -> Result<(), FileError> {
        let pem = pem("CERTIFICATE", certificate);
        write_private(&self.files().own.cert, pem.as_bytes())
    }

    /// A CA for a new cluster, and a certificate of its for this node.
    pub fn found(&self, cluster: &str, names: &Names, lifetime: Duration) -> Result<(), FileError> {
        let path = self.ca_key_path();
        let made = |error: rcgen::Error| unusable(&path, &error);
        let authority = Authority::create(&format!("Roadstead cluster {cluster}")).map_err(made)?;
        self.create_dir()?;
        write_private(&path, authority.key().expose_secret().as_bytes())?;
        let request = super::request(&self.key()?).map_err(made)?;
        let certificate = authority.sign(&request, names, lifetime).map_err(made)?;
        self.save(&[authority.certificate().to_vec()], &certificate)
    }

    /// The key of the CA, until the whole cluster has it.
    pub fn ca_key(&self) -> Result<Option<(Vec<u8>, SecretString)>, FileError> {
        let path = self.ca_key_path();
        if !path.exists() {
            return Ok(None);
        }
        let key = String::from_utf8(read(&path)?);
        let key = key.map_err(|_| FileError::NoKey { path })?;
        let ca = super::certificates(&self.files().ca)?;
        Ok(ca.first().map(|ca| (ca.to_vec(), key.into())))
    }

    /// The cluster has it.
    pub fn forget_ca_key(&self) -> Result<(), FileError> {
        let path = self.ca_key_path();
        std::fs::remove_file(&path).map_err(|source| FileError::Write { path, source })
    }

    fn ca_key_path(&self) -> PathBuf {
        self.dir.join("ca-key.pem")
    }

    fn create_dir(&self) -> Result<(), FileError> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&self.dir)
            .map_err(|source| FileError::Write {
                path: self.dir.clone(),
                source,
            })
    }
}

fn unusable(path: &Path, error: &rcgen::Error) -> FileError {
    FileError::Unusable {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// A certificate as it stands in a file.
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    pem("CERTIFICATE", der)
}
