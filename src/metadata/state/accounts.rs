//! Accounts: users, robot tokens, access keys, trusted CI systems; and the keys that tokens are
//! signed with. Secrets come as hashes, times come with the command.
//!
//! What must stay true: nobody changes what lies outside of what they administer, whatever it was
//! when they asked; a secret that was taken away is known no more.

use super::super::keys;
use super::super::raft_types::decode;
use super::{Apply, DONE, Decision, Refusal, refuse};
use crate::access::AccountName;
use crate::access::Grant;
use crate::access::GroupName;
use crate::access::Pattern;
use crate::access::is_over;
use crate::proto::state::v1 as pb;
use std::io;

/// What there may be of each: lists that an operator can still work with.
const MOST_ACCOUNTS: usize = 20_000;
pub(super) const MOST_GRANTS: usize = 200;
const MOST_SECRETS: usize = 3;
/// A retired key is kept as long as a token that it signed may be good, and a day.
const KEEP_KEYS_MS: u64 = 100 * 24 * 3600 * 1000;

pub(super) fn invalid(why: impl ToString) -> Refusal {
    refuse(pb::Reason::Invalid, why.to_string())
}

pub(super) fn unknown(kind: &str, name: &str) -> Refusal {
    refuse(
        pb::Reason::NameUnknown,
        format!("there is no {kind} {name:?} that you may change; list those that there are"),
    )
}

fn parse_grants(records: &[pb::GrantRecord]) -> Result<Vec<Grant>, Refusal> {
    if records.len() > MOST_GRANTS {
        return Err(invalid(format!("more than {MOST_GRANTS} grants")));
    }
    records
        .iter()
        .map(|record| Grant::try_from(record).map_err(invalid))
        .collect()
}

/// How far whoever asks for a change reaches.
pub(super) struct Reach {
    everything: bool,
    patterns: Vec<Pattern>,
    own: Option<String>,
}

impl Reach {
    pub(super) fn of(authority: Option<&pb::Authority>) -> Reach {
        let Some(authority) = authority else {
            return Reach {
                everything: false,
                patterns: Vec::new(),
                own: None,
            };
        };
        Reach {
            everything: authority.everything,
            patterns: authority
                .patterns
                .iter()
                .filter_map(|p| p.parse().ok())
                .collect(),
            own: authority.own.then(|| authority.actor.clone()),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        self.everything
    }

    pub(super) fn covers(&self, pattern: &Pattern) -> bool {
        self.everything || self.patterns.iter().any(|own| own.covers(pattern))
    }

    /// There are some, and all lie within.
    pub(super) fn covers_all(&self, records: &[pb::GrantRecord]) -> bool {
        let is_within = |record: &pb::GrantRecord| {
            record
                .pattern
                .parse()
                .is_ok_and(|pattern| self.covers(&pattern))
        };
        self.everything || !records.is_empty() && records.iter().all(is_within)
    }

    fn owns(&self, name: &str, record: &pb::AccountRecord) -> bool {
        match (&self.own, record.kind()) {
            (Some(own), pb::AccountKind::User) => own == name,
            (Some(own), pb::AccountKind::Key) => *own == record.owner,
            _ => false,
        }
    }

    /// May make, rotate and remove this one.
    pub(super) fn governs(&self, name: &str, record: &pb::AccountRecord) -> bool {
        match record.kind() {
            _ if self.everything => true,
            pb::AccountKind::Token => self.covers_all(&record.grants),
            pb::AccountKind::Key => self.owns(name, record),
            _ => false,
        }
    }
}

impl Apply<'_> {
    pub(super) fn account(&self, name: &str) -> io::Result<Option<pb::AccountRecord>> {
        self.tx.message(&keys::account(name))
    }

    pub(super) fn store_account(&mut self, name: &str, record: &pb::AccountRecord) {
        self.tx.put_message(keys::account(name), record);
    }

    /// The account, when the change may be made to it: one out of reach is told as one that is not
    /// there.
    fn within_reach(
        &self,
        name: &str,
        authority: Option<&pb::Authority>,
    ) -> io::Result<Result<pb::AccountRecord, Refusal>> {
        let reach = Reach::of(authority);
        let found = self
            .account(name)?
            .filter(|record| reach.governs(name, record));
        Ok(found.ok_or_else(|| unknown("account", name)))
    }

    fn check_new(&self, put: &pb::PutAccount) -> io::Result<Result<pb::AccountRecord, Refusal>> {
        let Some(record) = put.record.clone() else {
            return Ok(Err(invalid("an account without a record")));
        };
        if let Err(error) = put.name.parse::<AccountName>() {
            return Ok(Err(invalid(error)));
        }
        if let Err(refusal) = parse_grants(&record.grants) {
            return Ok(Err(refusal));
        }
        for group in &record.groups {
            if group.parse::<GroupName>().is_err() || !self.tx.has(&keys::group(group))? {
                return Ok(Err(unknown("group", group)));
            }
        }
        let fits = match record.kind() {
            pb::AccountKind::User => !record.password.is_empty() && record.secrets.is_empty(),
            pb::AccountKind::Token | pb::AccountKind::Key => {
                record.password.is_empty() && record.secrets.len() == 1 && record.groups.is_empty()
            }
            pb::AccountKind::Ci => record.ci.is_some() && record.secrets.is_empty(),
            pb::AccountKind::Unspecified => false,
        };
        if !fits || record.secrets.iter().any(|secret| secret.hash.len() != 32) {
            return Ok(Err(invalid("an account without what its kind needs")));
        }
        if record.kind() == pb::AccountKind::Key {
            let owner = self.account(&record.owner)?;
            if owner.is_none_or(|owner| owner.kind() != pb::AccountKind::User) {
                return Ok(Err(unknown("user", &record.owner)));
            }
        }
        if !Reach::of(put.authority.as_ref()).governs(&put.name, &record) {
            let message = "you may make tokens for what you administer, and keys for yourself";
            return Ok(Err(refuse(pb::Reason::NotAllowed, message)));
        }
        Ok(Ok(record))
    }

    pub fn put_account(&mut self, put: &pb::PutAccount) -> Decision {
        let mut record = match self.check_new(put)? {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if self.tx.has(&keys::account(&put.name))? {
            let message = format!("the name {:?} is taken; choose another one", put.name);
            return Ok(Err(refuse(pb::Reason::NameTaken, message)));
        }
        let accounts = self.tx.scan(keys::ACCOUNTS)?;
        if accounts.len() >= MOST_ACCOUNTS {
            return Ok(Err(invalid(format!(
                "there are {MOST_ACCOUNTS} accounts; remove some that are not used"
            ))));
        }
        if put.only_first && !accounts.is_empty() {
            return Ok(Err(refuse(
                pb::Reason::NameTaken,
                "there are accounts already",
            )));
        }
        record.index = self.index;
        for secret in &record.secrets {
            let key = keys::secret(&secret.hash);
            if self.tx.has(&key)? {
                return Ok(Err(invalid("this secret is known already; make a new one")));
            }
            self.tx.put(key, put.name.as_bytes().to_vec());
        }
        self.store_account(&put.name, &record);
        Ok(Ok(DONE))
    }

    pub fn remove_account(&mut self, remove: &pb::RemoveAccount) -> Decision {
        let record = match self.within_reach(&remove.name, remove.authority.as_ref())? {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.forget_account(&remove.name, &record);
        if record.kind() == pb::AccountKind::User {
            for (key, value) in self.tx.scan(keys::ACCOUNTS)? {
                let of = decode::<pb::AccountRecord>("account", &value)?;
                if let Ok(name) = std::str::from_utf8(&key[1..])
                    && of.kind() == pb::AccountKind::Key
                    && of.owner == remove.name
                {
                    let name = name.to_owned();
                    self.forget_account(&name, &of);
                }
            }
        }
        Ok(Ok(DONE))
    }

    fn forget_account(&mut self, name: &str, record: &pb::AccountRecord) {
        for secret in &record.secrets {
            self.tx.delete(keys::secret(&secret.hash));
        }
        self.tx.delete(keys::account(name));
        self.tx.delete(keys::used(name));
    }

    pub fn set_password(&mut self, set: &pb::SetPassword) -> Decision {
        let reach = Reach::of(set.authority.as_ref());
        let may = |record: &pb::AccountRecord| reach.is_all() || reach.owns(&set.name, record);
        let found = self.account(&set.name)?;
        let is_user = |record: &pb::AccountRecord| record.kind() == pb::AccountKind::User;
        match found.filter(|record| is_user(record) && may(record)) {
            Some(_) if set.password.is_empty() => Ok(Err(invalid("no password is given"))),
            Some(mut record) => {
                record.password.clone_from(&set.password);
                self.store_account(&set.name, &record);
                Ok(Ok(DONE))
            }
            None => Ok(Err(unknown("user", &set.name))),
        }
    }

    pub fn rotate_secret(&mut self, rotate: &pb::RotateSecret) -> Decision {
        let mut record = match self.within_reach(&rotate.name, rotate.authority.as_ref())? {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let key = keys::secret(&rotate.hash);
        if rotate.hash.len() != 32 || self.tx.has(&key)? {
            return Ok(Err(invalid("this secret is known already; make a new one")));
        }
        if !matches!(record.kind(), pb::AccountKind::Token | pb::AccountKind::Key) {
            return Ok(Err(invalid("only tokens and access keys are rotated")));
        }
        for secret in &mut record.secrets {
            secret.expires_at_ms = match secret.expires_at_ms {
                0 => rotate.keep_old_until_ms.max(1),
                until => until.min(rotate.keep_old_until_ms.max(1)),
            };
        }
        record.secrets.push(pb::SecretRecord {
            hash: rotate.hash.clone(),
            created_at_ms: rotate.now_ms,
            expires_at_ms: 0,
        });
        record.expires_at_ms = rotate.expires_at_ms;
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for secret in std::mem::take(&mut record.secrets).into_iter().rev() {
            match kept.len() < MOST_SECRETS && !is_over(secret.expires_at_ms, rotate.now_ms) {
                true => kept.push(secret),
                false => gone.push(secret),
            }
        }
        kept.reverse();
        record.secrets = kept;
        for secret in gone {
            self.tx.delete(keys::secret(&secret.hash));
        }
        self.tx.put(key, rotate.name.as_bytes().to_vec());
        self.store_account(&rotate.name, &record);
        Ok(Ok(DONE))
    }

    pub fn put_signing_key(&mut self, put: &pb::PutSigningKey) -> Decision {
        let Some(record) = put.record.clone().filter(|r| !r.pkcs8.is_empty()) else {
            return Ok(Err(invalid("a signing key without a key")));
        };
        let stored = self.tx.scan(keys::SIGNING_KEYS)?;
        if put.only_first && !stored.is_empty() {
            return Ok(Ok(DONE));
        }
        if put.kid.is_empty() || put.kid.len() > 64 || self.tx.has(&keys::signing_key(&put.kid))? {
            return Ok(Err(invalid("this key id is not one, or is taken")));
        }
        for (key, value) in stored {
            let mut old: pb::SigningKeyRecord = decode("signing key", &value)?;
            if put.drop_others {
                self.tx.delete(key);
            } else if old.retired_at_ms == 0 {
                old.retired_at_ms = record.created_at_ms.max(1);
                self.tx.put_message(key, &old);
            } else if old.retired_at_ms.saturating_add(KEEP_KEYS_MS) < record.created_at_ms {
                self.tx.delete(key);
            }
        }
        self.tx.put_message(keys::signing_key(&put.kid), &record);
        Ok(Ok(DONE))
    }

    /// Of accounts that are there still; a later time is kept.
    pub fn used(&mut self, used: &pb::Used) -> Decision {
        for used in &used.uses {
            if !self.tx.has(&keys::account(&used.account))? {
                continue;
            }
            let key = keys::used(&used.account);
            let before: pb::UsedRecord = self.tx.message(&key)?.unwrap_or_default();
            if before.at_ms < used.at_ms {
                self.tx
                    .put_message(key, &pb::UsedRecord { at_ms: used.at_ms });
            }
        }
        Ok(Ok(DONE))
    }
}
