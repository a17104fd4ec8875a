//! What a cluster with accounts needs before anyone can log in: the key that tokens are signed with,
//! and the first admin. Made once, by whoever leads; a cluster that has them is left alone.
//!
//! What must stay true: the password is on disk, for its owner only, before the account exists; a
//! cluster that has accounts never gets another admin this way.

use super::Login;
use super::hash_password;
use crate::access::Pattern;
use crate::access::Rights;
use crate::budget::Budget;
use crate::clock::wall_ms;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::proto::state::v1::outcome::Result as Outcome;
use aws_lc_rs::signature::Ed25519KeyPair;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(500);
pub const PASSWORD_VARIABLE: &str = "ROADSTEAD_ADMIN_PASSWORD";
/// In the data directory.
pub const PASSWORD_FILE: &str = "admin-password";
pub const ADMIN: &str = "admin";

/// A key to sign tokens with from now on.
pub fn new_signing_key(now_ms: u64, only_first: bool) -> io::Result<pb::PutSigningKey> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random)
        .map_err(|_| io::Error::other("make a signing key"))?;
    Ok(pb::PutSigningKey {
        kid: hex::encode(rand::random::<[u8; 8]>()),
        record: Some(pb::SigningKeyRecord {
            pkcs8: pkcs8.as_ref().to_vec().into(),
            created_at_ms: now_ms,
            retired_at_ms: 0,
        }),
        only_first,
        drop_others: false,
    })
}

impl Login {
    pub(super) async fn make_first(self, data_dir: PathBuf) {
        loop {
            match self.make_what_is_missing(&data_dir).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "make the first admin; it is tried again"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// True: nothing is missing.
    async fn make_what_is_missing(&self, data_dir: &Path) -> io::Result<bool> {
        let view = self.view();
        let has_cluster = view.cluster()?.is_some();
        let (has_key, has_accounts) = (!view.signing_keys()?.is_empty(), view.has_accounts()?);
        if has_key && has_accounts {
            return Ok(true);
        }
        let metadata = &self.inner.metadata;
        let leads = metadata.status().leader == Some(metadata.identity().node());
        if !has_cluster || !leads {
            return Ok(false);
        }
        if !has_key {
            let put = Body::PutSigningKey(new_signing_key(wall_ms(), true)?);
            metadata
                .write(put, Budget::default())
                .await
                .map_err(io::Error::other)?;
        }
        if !has_accounts {
            self.make_first_admin(data_dir).await?;
        }
        Ok(false)
    }

    async fn make_first_admin(&self, data_dir: &Path) -> io::Result<()> {
        let file = data_dir.join(PASSWORD_FILE);
        let (password, place) = match std::env::var(PASSWORD_VARIABLE) {
            Ok(given) if !given.is_empty() => (SecretString::from(given), None),
            _ => (kept_password(&file)?, Some(file)),
        };
        let everything = pb::GrantRecord {
            pattern: Pattern::All.to_string(),
            rights: Rights::ADMIN.bits(),
            expires_at_ms: 0,
        };
        let record = pb::AccountRecord {
            kind: pb::AccountKind::User.into(),
            grants: vec![everything],
            password: hash_password(&password)?,
            created_at_ms: wall_ms(),
            created_by: "bootstrap".to_owned(),
            ..pb::AccountRecord::default()
        };
        let put = Body::PutAccount(pb::PutAccount {
            name: ADMIN.to_owned(),
            record: Some(record),
            authority: Some(pb::Authority {
                actor: "bootstrap".to_owned(),
                everything: true,
                ..pb::Authority::default()
            }),
            only_first: true,
        });
        let outcome = self.inner.metadata.write(put, Budget::default()).await;
        match outcome.map_err(io::Error::other)?.result {
            Some(Outcome::Done(_)) => match place {
                Some(place) => {
                    tracing::warn!(file = %place.display(), "the first account is made: log in as admin with the password in this file, change it, delete the file")
                }
                None => tracing::info!(
                    "the first account is made: admin, with the password of {PASSWORD_VARIABLE}"
                ),
            },
            // Somebody else was first.
            Some(Outcome::Refused(_)) => {}
            _ => {
                return Err(io::Error::other(
                    "it is not known whether the account was made",
                ));
            }
        }
        Ok(())
    }
}

/// The password in the file, which is made when it is not there; on disk when this returns.
pub fn kept_password(file: &Path) -> io::Result<SecretString> {
    match std::fs::read_to_string(file) {
        Ok(kept) if !kept.trim().is_empty() => return Ok(kept.trim().to_owned().into()),
        Ok(_) => std::fs::remove_file(file)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let password = SecretString::from(hex::encode(rand::random::<[u8; 16]>()));
    let mut made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    made.write_all(format!("{}\n", password.expose_secret()).as_bytes())?;
    made.sync_all()?;
    if let Some(dir) = file.parent() {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_password_is_for_its_owner_only_and_stays_the_same_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(PASSWORD_FILE);
        let first = kept_password(&file).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.expose_secret().len(), 32);
        let again = kept_password(&file).unwrap();
        assert_eq!(again.expose_secret(), first.expose_secret());
    }
}
