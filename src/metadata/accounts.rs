//! Reads of accounts and groups, and what a principal may do: the one place that says so. Each
//! request is judged by the state as it is then, so that what was taken away is gone at once.

use super::View;
use super::keys;
use super::raft_types::decode;
use super::raft_types::invalid;
use crate::access::AccountName;
use crate::access::CredentialId;
use crate::access::Grant;
use crate::access::GroupName;
use crate::access::Pattern;
use crate::access::Principal;
use crate::access::Rights;
use crate::access::Who;
use crate::access::is_over;
use crate::oci::RepositoryName;
use crate::policy::Prefix;
use crate::proto::state::v1 as pb;
use bytes::Bytes;
use std::io;

/// What is shown of a secret's hash: enough to tell one from another.
const ID_BYTES: usize = 8;

#[derive(Clone, Debug)]
pub struct Account {
    pub name: AccountName,
    pub record: pb::AccountRecord,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub name: GroupName,
    pub record: pb::GroupRecord,
}

#[derive(Clone, Debug)]
pub struct SigningKey {
    pub kid: String,
    pub record: pb::SigningKeyRecord,
}

/// Of a hash, or of what stands for one.
pub fn credential_id(hash: &[u8]) -> CredentialId {
    CredentialId(hex::encode(&hash[..hash.len().min(ID_BYTES)]))
}

impl Account {
    pub fn kind(&self) -> pb::AccountKind {
        self.record.kind()
    }

    pub fn is_expired(&self, now_ms: u64) -> bool {
        is_over(self.record.expires_at_ms, now_ms)
    }

    /// What it can log in with at that time.
    pub fn credentials(&self, now_ms: u64) -> Vec<CredentialId> {
        if self.is_expired(now_ms) {
            return Vec::new();
        }
        match self.kind() {
            pb::AccountKind::User => vec![password_id(&self.record.password)],
            pb::AccountKind::Ci => vec![CredentialId(format!("{:016x}", self.record.index))],
            _ => {
                let secrets = self.record.secrets.iter();
                let good = secrets.filter(|secret| !is_over(secret.expires_at_ms, now_ms));
                good.map(|secret| credential_id(&secret.hash)).collect()
            }
        }
    }

    pub fn grants(&self) -> Vec<Grant> {
        parse(&self.record.grants)
    }
}

/// A password's stored form has its salt in it, so another one of the same password is another.
pub fn password_id(stored: &str) -> CredentialId {
    let digest = crate::oci::Digest::of(crate::oci::Algorithm::Sha256, stored.as_bytes());
    credential_id(&digest.bytes())
}

fn parse(records: &[pb::GrantRecord]) -> Vec<Grant> {
    // Apply takes in no other.
    records
        .iter()
        .filter_map(|record| Grant::try_from(record).ok())
        .collect()
}

/// What an account may do, wherever: its own grants and those of its groups, and, of a key, no more
/// than its own say.
#[derive(Clone, Debug, Default)]
pub struct Granted {
    grants: Vec<Grant>,
    within: Option<Vec<Grant>>,
}

fn sum(grants: &[Grant], repository: &RepositoryName, now_ms: u64) -> Rights {
    let rights = grants
        .iter()
        .map(|grant| grant.rights_to(repository, now_ms));
    rights.fold(Rights::NONE, |all, rights| all | rights)
}

impl Granted {
    pub fn rights_to(&self, repository: &RepositoryName, now_ms: u64) -> Rights {
        let rights = sum(&self.grants, repository, now_ms);
        match &self.within {
            Some(within) => rights & sum(within, repository, now_ms),
            None => rights,
        }
    }

    /// Where it may do all of that, each pattern once by each grant that says so.
    pub fn patterns(&self, right: Rights, now_ms: u64) -> Vec<Pattern> {
        let of = |grants: &[Grant]| {
            let good = grants.iter().filter(|grant| grant.is_good(now_ms));
            let good = good.filter(|grant| grant.rights.has(right));
            good.map(|grant| grant.pattern.clone()).collect::<Vec<_>>()
        };
        let outer = of(&self.grants);
        let Some(within) = &self.within else {
            return outer;
        };
        let inner = of(within);
        let narrower = |a: &Pattern, b: &Pattern| match (a.covers(b), b.covers(a)) {
            (true, _) => Some(b.clone()),
            (_, true) => Some(a.clone()),
            _ => None,
        };
        outer
            .iter()
            .flat_map(|a| inner.iter().filter_map(move |b| narrower(a, b)))
            .collect()
    }
}

impl View {
    pub fn account(&self, name: &AccountName) -> io::Result<Option<Account>> {
        let record = self.message(&keys::account(name.as_str()))?;
        Ok(record.map(|record| Account {
            name: name.clone(),
            record,
        }))
    }

    /// Whose random secret has this SHA-256.
    pub fn account_of_secret(&self, hash: &[u8]) -> io::Result<Option<Account>> {
        let Some(name) = self.tree.get(&keys::secret(hash))? else {
            return Ok(None);
        };
        let name = std::str::from_utf8(&name).map_err(invalid)?;
        self.account(&name.parse().map_err(invalid)?)
    }

    /// In byte order of their names.
    pub fn accounts(&self) -> io::Result<Vec<Account>> {
        let of = |(key, value): (Bytes, Bytes)| {
            let name = std::str::from_utf8(&key[1..]).map_err(invalid)?;
            let name = name.parse().map_err(invalid)?;
            Ok(Account {
                name,
                record: decode("account", &value)?,
            })
        };
        let stored = self.tree.prefix_page(keys::ACCOUNTS, None, usize::MAX)?;
        stored.into_iter().map(of).collect()
    }

    pub fn has_accounts(&self) -> io::Result<bool> {
        Ok(!self.tree.prefix_page(keys::ACCOUNTS, None, 1)?.is_empty())
    }

    /// Wall clock, milliseconds; as far as nodes have told.
    pub fn used_at_ms(&self, name: &AccountName) -> io::Result<Option<u64>> {
        let record: Option<pb::UsedRecord> = self.message(&keys::used(name.as_str()))?;
        Ok(record.map(|record| record.at_ms))
    }

    pub fn groups(&self) -> io::Result<Vec<Group>> {
        let of = |(key, value): (Bytes, Bytes)| {
            let name = std::str::from_utf8(&key[1..]).map_err(invalid)?;
            let name = name.parse().map_err(invalid)?;
            Ok(Group {
                name,
                record: decode("group", &value)?,
            })
        };
        let stored = self.tree.prefix_page(keys::GROUPS, None, usize::MAX)?;
        stored.into_iter().map(of).collect()
    }

    /// Those that tokens may be signed by; the one that is not retired signs.
    pub fn signing_keys(&self) -> io::Result<Vec<SigningKey>> {
        let of = |(key, value): (Bytes, Bytes)| {
            let kid = String::from_utf8(key[1..].to_vec()).map_err(invalid)?;
            Ok(SigningKey {
                kid,
                record: decode("signing key", &value)?,
            })
        };
        let stored = self
            .tree
            .prefix_page(keys::SIGNING_KEYS, None, usize::MAX)?;
        stored.into_iter().map(of).collect()
    }

    pub fn has_signing_key(&self, kid: &str) -> io::Result<bool> {
        Ok(self.tree.get(&keys::signing_key(kid))?.is_some())
    }

    pub fn granted(&self, account: &Account) -> io::Result<Granted> {
        if account.kind() != pb::AccountKind::Key {
            return Ok(Granted {
                grants: self.all_grants(account)?,
                within: None,
            });
        }
        let owner = account.record.owner.parse().map_err(invalid)?;
        let grants = match self.account(&owner)? {
            Some(owner) => self.all_grants(&owner)?,
            None => Vec::new(),
        };
        let own = account.grants();
        Ok(Granted {
            grants,
            within: (!own.is_empty()).then_some(own),
        })
    }

    fn all_grants(&self, account: &Account) -> io::Result<Vec<Grant>> {
        let mut grants = account.grants();
        for group in &account.record.groups {
            let record: Option<pb::GroupRecord> = self.message(&keys::group(group))?;
            grants.extend(parse(&record.unwrap_or_default().grants));
        }
        Ok(grants)
    }

    /// The account that a principal is, while what it logged in with is good: an access key of a user
    /// who is gone, or whose time is over, is not.
    fn live(&self, who: &Who, now_ms: u64) -> io::Result<Option<Account>> {
        let Who::Account { name, credential } = who else {
            return Ok(None);
        };
        let Some(account) = self.account(name)? else {
            return Ok(None);
        };
        if !account.credentials(now_ms).contains(credential) {
            return Ok(None);
        }
        if account.kind() == pb::AccountKind::Key {
            let owner = account.record.owner.parse().map_err(invalid)?;
            let owner = self.account(&owner)?;
            if owner.is_none_or(|owner| owner.is_expired(now_ms)) {
                return Ok(None);
            }
        }
        Ok(Some(account))
    }

    /// What it logged in with is good still.
    pub fn is_live(&self, principal: &Principal, now_ms: u64) -> io::Result<bool> {
        match principal.who {
            Who::Account { .. } => Ok(self.live(&principal.who, now_ms)?.is_some()),
            _ => Ok(true),
        }
    }

    /// What the principal may do with the repository, now.
    pub fn rights(
        &self,
        principal: &Principal,
        repository: &RepositoryName,
        now_ms: u64,
    ) -> io::Result<Rights> {
        if principal.is_unbound() {
            return Ok(Rights::ADMIN);
        }
        let mut rights = match self.live(&principal.who, now_ms)? {
            Some(account) => self.granted(&account)?.rights_to(repository, now_ms),
            None => Rights::NONE,
        };
        if !rights.has(Rights::PULL) && self.policy(&repository.into())?.public.value {
            rights = rights | Rights::PULL;
        }
        Ok(rights & principal.limit(repository))
    }

    /// What it administers: patterns, one of which is `*` for the whole registry. Of a short-lived
    /// token nothing.
    pub fn administers(&self, principal: &Principal, now_ms: u64) -> io::Result<Vec<Pattern>> {
        if principal.is_unbound() {
            return Ok(vec![Pattern::All]);
        }
        match self.live(&principal.who, now_ms)? {
            Some(account) if principal.scopes.is_none() => {
                Ok(self.granted(&account)?.patterns(Rights::ADMIN, now_ms))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Where it may find repositories that it may pull: each of them lies under one of these.
    pub fn may_pull_under(&self, principal: &Principal, now_ms: u64) -> io::Result<Vec<Pattern>> {
        if principal.is_unbound() {
            return Ok(vec![Pattern::All]);
        }
        let mut patterns = Vec::new();
        for (prefix, settings) in self.policies()? {
            if settings.public == Some(true) {
                let prefix: Prefix = prefix.parse().map_err(invalid)?;
                patterns.push(Pattern::from(&prefix));
            }
        }
        if let Some(account) = self.live(&principal.who, now_ms)? {
            patterns.extend(self.granted(&account)?.patterns(Rights::PULL, now_ms));
        }
        Ok(patterns)
    }
}
