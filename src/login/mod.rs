//! Who is asking: names and passwords, random secrets, short-lived tokens, the tokens of CI systems.
//! All is checked against local state, so that a region that stands alone goes on.
//!
//! What must stay true: a secret is compared as a hash, in constant time, and is in no log, error or
//! answer but the one that hands it out; a wrong name costs an attacker the same as a wrong password;
//! what was taken away is refused at the next request, whatever was issued before.

mod ci;
mod credentials;
mod first;
mod passwords;
mod throttle;
mod tokens;
mod turns;
mod used;
mod verified;
mod visitor;

pub use credentials::Shown;
pub use first::ADMIN;
pub use first::PASSWORD_FILE;
pub use first::PASSWORD_VARIABLE;
pub use first::kept_password;
pub use first::new_signing_key;
pub use passwords::hash as hash_password;
pub use tokens::Issued;
pub use visitor::Front;
pub use visitor::Visitor;

use crate::access::AccountName;
use crate::access::Principal;
use crate::access::Who;
use crate::audit::Audit;
use crate::clock::wall_ms;
use crate::metadata::Metadata;
use crate::metadata::View;
use crate::metadata::accounts::Account;
use crate::metadata::accounts::credential_id;
use crate::metadata::accounts::password_id;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::proto::state::v1::AccountKind;
use crate::tasks::Tasks;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What random secrets begin with, so that scanners of source code know them.
pub const SECRET_PREFIX: &str = "rst_";
/// In place of a name, with the token of a CI system as password.
const CI_NAME: &str = "oidc";

/// Why somebody is not who they say.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("name or password is wrong, or the account has expired")]
    Wrong,
    /// Of a short-lived token; says what is wrong with it.
    #[error("the token is not good: {0}; log in again")]
    Token(&'static str),
    /// 400: not what a header may hold.
    #[error("the Authorization header cannot be read: {0}")]
    Malformed(&'static str),
    /// 429.
    #[error("too many logins wait to be checked from there; try again later")]
    Busy,
    /// 503.
    #[error("{0}")]
    NotYet(&'static str),
    #[error("metadata store")]
    Io(#[from] io::Error),
}

pub struct Parts {
    pub metadata: Metadata,
    pub audit: Audit,
    pub front: Front,
    pub tasks: Tasks,
    /// False: there are no accounts on this node, and everybody may do everything.
    pub has_accounts: bool,
    pub data_dir: PathBuf,
    /// A node that has not heard from the leader for longer does not trust what it knows of accounts.
    pub max_stale: Option<Duration>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Login {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Metadata,
    audit: Audit,
    front: Front,
    has_accounts: bool,
    passwords: passwords::Passwords,
    throttle: throttle::Throttle,
    tokens: verified::Verified,
    used: used::Uses,
    turns: turns::Turns,
    max_stale: Option<Duration>,
    ci: ci::Issuers,
}

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::ci::fuzzing::claims_of_ci;
    pub use super::tokens::fuzzing::is_token;
}

/// What is kept of a random secret.
pub fn secret_hash(secret: &str) -> Vec<u8> {
    Digest::of(Algorithm::Sha256, secret.as_bytes())
        .bytes()
        .to_vec()
}

/// A new one, to be shown once: 256 random bits.
pub fn new_secret() -> SecretString {
    use base64::Engine;
    let random: [u8; 32] = rand::random();
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random);
    format!("{SECRET_PREFIX}{text}").into()
}

impl Login {
    /// Starts its loops, so it must be called within a runtime.
    pub fn start(parts: Parts) -> Login {
        let Parts {
            metadata,
            audit,
            front,
            tasks,
            has_accounts,
            data_dir,
            max_stale,
        } = parts;
        let inner = Inner {
            metadata,
            audit,
            front,
            has_accounts,
            passwords: passwords::Passwords::new(tasks.clone()),
            throttle: throttle::Throttle::default(),
            tokens: verified::Verified::default(),
            used: used::Uses::default(),
            turns: turns::Turns::default(),
            max_stale,
            ci: ci::Issuers::new(),
        };
        let login = Login {
            inner: Arc::new(inner),
        };
        if has_accounts {
            let (first, stop) = (login.clone(), tasks.stop_token());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = first.make_first(data_dir) => {}
                }
            });
            let (using, stop) = (login.clone(), tasks.stop_token());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = using.tell_uses() => {}
                }
            });
        }
        login
    }

    pub fn visitor(&self, request: &http::request::Parts) -> Visitor {
        self.inner.front.visitor(request)
    }

    pub fn has_accounts(&self) -> bool {
        self.inner.has_accounts
    }

    pub fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    fn view(&self) -> View {
        self.inner.metadata.view()
    }

    /// Who shows this. Slow for passwords that are not known yet, and for whoever was wrong often.
    pub async fn principal(
        &self,
        shown: &Shown,
        client: Option<IpAddr>,
    ) -> Result<Principal, Denied> {
        if !self.inner.has_accounts {
            return Ok(Principal::new(Who::Everyone));
        }
        match shown {
            Shown::Nothing => Ok(Principal::new(Who::Anonymous)),
            Shown::Bearer(secret) if secret.expose_secret().starts_with(SECRET_PREFIX) => {
                self.by_secret(None, secret)?.ok_or(Denied::Wrong)
            }
            Shown::Bearer(token) => self.by_token(token),
            Shown::Basic { name, password } => self.by_password(name, password, client).await,
        }
    }

    /// What this node knows of accounts may be too old to go by: what was taken away elsewhere may
    /// count here still. Only where an operator has set for how long that is to be borne.
    pub async fn check_age(&self, principal: &Principal) -> Result<(), Denied> {
        let (Some(most), Some(_)) = (self.inner.max_stale, principal.account()) else {
            return Ok(());
        };
        let read = self.inner.metadata.read(|_| Ok(())).await;
        let staleness = read.map_err(io::Error::other)?.staleness;
        match staleness.is_some_and(|age| age > most) {
            true => Err(Denied::NotYet(
                "this region is cut off for longer than registry.auth_max_stale allows; ask another one",
            )),
            false => Ok(()),
        }
    }

    /// A random secret, which needs no slow hash; with the name that was given with it, if any.
    fn by_secret(
        &self,
        name: Option<&AccountName>,
        secret: &SecretString,
    ) -> Result<Option<Principal>, Denied> {
        let hash = secret_hash(secret.expose_secret());
        let found = self.view().account_of_secret(&hash)?;
        let Some(account) = found.filter(|found| name.is_none_or(|name| found.name == *name))
        else {
            return Ok(None);
        };
        let who = Who::Account {
            name: account.name.clone(),
            credential: credential_id(&hash),
        };
        Ok(self.live(Principal::new(who), &account)?)
    }

    fn live(&self, principal: Principal, account: &Account) -> io::Result<Option<Principal>> {
        let is_live = self.view().is_live(&principal, wall_ms())?;
        if is_live {
            self.inner.used.note(&account.name, wall_ms());
        }
        Ok(is_live.then_some(principal))
    }

    async fn by_password(
        &self,
        name: &str,
        password: &SecretString,
        client: Option<IpAddr>,
    ) -> Result<Principal, Denied> {
        if name == CI_NAME {
            return self.by_ci_token(password, client).await;
        }
        let parsed: Option<AccountName> = name.parse().ok();
        let account = match &parsed {
            Some(name) => self.view().account(name)?,
            None => None,
        };
        let stored = account
            .as_ref()
            .filter(|account| account.kind() == AccountKind::User);
        if let Some(account) = stored
            && self
                .inner
                .passwords
                .knows(&account.record.password, password)
            && let Some(principal) = self.with_password(account)?
        {
            return Ok(principal);
        }
        // Nobody guesses 256 random bits, so one that is wrong has expired or was taken away: its
        // machine goes on trying, and must not slow the people at the same address.
        if password.expose_secret().starts_with(SECRET_PREFIX) {
            let found = match &parsed {
                Some(name) => self.by_secret(Some(name), password)?,
                None => None,
            };
            return found.ok_or(Denied::Wrong);
        }
        // From here on it costs; also for names that nobody has.
        let _turn = self
            .inner
            .throttle
            .wait(name, client)
            .await
            .ok_or(Denied::Busy)?;
        let hash = stored.map(|account| account.record.password.as_str());
        let is_right = self.inner.passwords.check(hash, password).await?;
        let principal = match (is_right, stored) {
            (true, Some(account)) => self.with_password(account)?,
            _ => None,
        };
        match &principal {
            Some(_) => self.inner.throttle.succeeded(name, client),
            None => self.inner.throttle.failed(name, client),
        }
        principal.ok_or(Denied::Wrong)
    }

    fn with_password(&self, account: &Account) -> io::Result<Option<Principal>> {
        let who = Who::Account {
            name: account.name.clone(),
            credential: password_id(&account.record.password),
        };
        self.live(Principal::new(who), account)
    }
}
