//! Policies: what a prefix sets, checked again here, and what counts for a repository.

use super::super::keys;
use super::super::query::settings;
use super::{Apply, DONE, Decision, refuse};
use crate::policy::Defaults;
use crate::policy::Effective;
use crate::policy::Key;
use crate::policy::Prefix;
use crate::policy::Settings;
use crate::policy::resolve;
use crate::proto::state::v1 as pb;
use std::io;

/// Prefixes that may have a policy: a list that an operator can still read.
const MOST: usize = 1000;

impl Apply<'_> {
    fn settings_of(&self, prefix: &str) -> io::Result<Option<Settings>> {
        self.tx
            .get(&keys::policy(prefix))?
            .map(settings)
            .transpose()
    }

    /// What counts there at this entry.
    pub fn policy(&self, prefix: &Prefix) -> io::Result<Effective> {
        let cluster: pb::ClusterRecord = self.tx.message(keys::CLUSTER)?.unwrap_or_default();
        let defaults = Defaults::from(&cluster);
        resolve(prefix, defaults, |prefix| self.settings_of(prefix))
    }

    pub fn set_policy(&mut self, set: &pb::SetPolicy) -> Decision {
        let invalid = |why: String| Ok(Err(refuse(pb::Reason::Invalid, why)));
        let prefix: Prefix = match set.prefix.parse() {
            Ok(prefix) => prefix,
            Err(error) => return invalid(format!("{error}")),
        };
        let changes = match Settings::try_from(&set.set.clone().unwrap_or_default()) {
            Ok(changes) => changes,
            Err(error) => return invalid(error.to_string()),
        };
        if changes.is_empty() {
            return invalid("no key is set".to_owned());
        }
        let before = self.settings_of(prefix.as_str())?;
        if before.is_none() && self.tx.scan(keys::POLICIES)?.len() >= MOST {
            return invalid(format!("{MOST} prefixes have a policy; unset one first"));
        }
        let mut settings = before.unwrap_or_default();
        settings.change(changes);
        self.put_policy(&prefix, &settings);
        Ok(Ok(DONE))
    }

    pub fn unset_policy(&mut self, unset: &pb::UnsetPolicy) -> Decision {
        let prefix: Prefix = match unset.prefix.parse() {
            Ok(prefix) => prefix,
            Err(error) => return Ok(Err(refuse(pb::Reason::Invalid, format!("{error}")))),
        };
        let keys: Result<Vec<Key>, _> = unset.keys.iter().map(|key| key.parse()).collect();
        let keys = match keys {
            Ok(keys) => keys,
            Err(error) => return Ok(Err(refuse(pb::Reason::Invalid, error.to_string()))),
        };
        let mut settings = self.settings_of(prefix.as_str())?.unwrap_or_default();
        for key in keys {
            settings.unset(key);
        }
        self.put_policy(&prefix, &settings);
        Ok(Ok(DONE))
    }

    fn put_policy(&mut self, prefix: &Prefix, settings: &Settings) {
        let key = keys::policy(prefix.as_str());
        if settings.is_empty() {
            self.tx.delete(key);
        } else {
            self.tx.put_message(key, &pb::PolicyRecord::from(settings));
        }
    }
}
