//! Passwords: argon2id, checked a few at a time, with a short memory of those that were right.
//!
//! What must stay true: a check takes as long when there is no such user; what is remembered is gone
//! with the password that it was made from.

use crate::tasks::Tasks;
use argon2::Argon2;
use argon2::PasswordHasher;
use argon2::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use aws_lc_rs::hmac;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Each takes 19 MiB and a core for some 20 ms (the parameters that OWASP recommends for argon2id).
const AT_ONCE: usize = 2;
const REMEMBERED: Duration = Duration::from_secs(60);
const MOST_REMEMBERED: usize = 1000;

pub struct Passwords {
    tasks: Tasks,
    turns: Semaphore,
    /// Of this process only.
    key: hmac::Key,
    right: Mutex<HashMap<[u8; 32], Instant>>,
    /// Of a password that nobody knows.
    nobody: String,
}

/// As it is stored: a PHC string, with a salt of its own.
pub fn hash(password: &SecretString) -> io::Result<String> {
    let hashed = Argon2::default().hash_password(password.expose_secret().as_bytes());
    hashed
        .map(|hash: PasswordHash| hash.to_string())
        .map_err(io::Error::other)
}

fn is_right(stored: &str, password: &SecretString) -> bool {
    let parsed = PasswordHash::new(stored);
    let password = password.expose_secret().as_bytes();
    parsed.is_ok_and(|stored| Argon2::default().verify_password(password, &stored).is_ok())
}

impl Passwords {
    pub fn new(tasks: Tasks) -> Passwords {
        let random: [u8; 32] = rand::random();
        Passwords {
            tasks,
            turns: Semaphore::new(AT_ONCE),
            key: hmac::Key::new(hmac::HMAC_SHA256, &random),
            right: Mutex::default(),
            nobody: hash(&hex::encode(random).into()).unwrap_or_default(),
        }
    }

    fn mark(&self, stored: &str, password: &SecretString) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(stored.as_bytes());
        context.update(&[0]);
        context.update(password.expose_secret().as_bytes());
        let mut mark = [0; 32];
        mark.copy_from_slice(context.sign().as_ref());
        mark
    }

    /// It was right a moment ago.
    pub fn knows(&self, stored: &str, password: &SecretString) -> bool {
        let mark = self.mark(stored, password);
        let right = self.right.lock().expect("no panic while held");
        right.get(&mark).is_some_and(|at| at.elapsed() < REMEMBERED)
    }

    /// `stored`: None when there is no such user, which takes as long and is wrong.
    pub async fn check(&self, stored: Option<&str>, password: &SecretString) -> io::Result<bool> {
        let _turn = self.turns.acquire().await.map_err(io::Error::other)?;
        let against = stored.unwrap_or(&self.nobody).to_owned();
        let (hash, given) = (against.clone(), password.clone());
        let checked = self
            .tasks
            .spawn_blocking(move || is_right(&hash, &given))
            .await;
        let is_right = checked.map_err(io::Error::other)? && stored.is_some();
        if is_right {
            let mark = self.mark(&against, password);
            let mut right = self.right.lock().expect("no panic while held");
            if right.len() >= MOST_REMEMBERED {
                right.retain(|_, at| at.elapsed() < REMEMBERED);
            }
            if right.len() < MOST_REMEMBERED {
                right.insert(mark, Instant::now());
            }
        }
        Ok(is_right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_right_password_is_remembered_for_a_while_and_not_beyond_a_change() {
        let passwords = Passwords::new(Tasks::new());
        let (first, second) = ("one".to_owned().into(), "two".to_owned().into());
        let stored = hash(&first).unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert_ne!(hash(&first).unwrap(), stored, "each has a salt of its own");
        assert!(!passwords.check(Some(&stored), &second).await.unwrap());
        assert!(!passwords.knows(&stored, &first));
        assert!(passwords.check(Some(&stored), &first).await.unwrap());
        assert!(passwords.knows(&stored, &first));
        assert!(!passwords.knows(&stored, &second));
        let changed = hash(&first).unwrap();
        assert!(!passwords.knows(&changed, &first), "set anew");
        tokio::time::advance(REMEMBERED).await;
        assert!(!passwords.knows(&stored, &first));
    }

    #[tokio::test]
    async fn a_user_who_is_not_there_is_wrong_whatever_is_given() {
        let passwords = Passwords::new(Tasks::new());
        assert!(!passwords.check(None, &"".to_owned().into()).await.unwrap());
        assert!(
            !passwords
                .check(Some("no hash"), &"x".to_owned().into())
                .await
                .unwrap()
        );
    }
}
