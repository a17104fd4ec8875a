//! Policies: what a prefix sets, checked again here, and what counts for a repository.

use super::super::keys;
use super::super::policies::settings;
use super::links::Held;
use super::{Apply, DONE, Decision, refuse};
use crate::oci::RepositoryName;
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

/// Manifests that one step of a walk looks at, and about how many blobs it changes at most.
const STEP: usize = 500;

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
        let before = before.unwrap_or_default();
        let mut settings = before.clone();
        settings.change(changes);
        self.put_policy(&prefix, &before, &settings);
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
        let before = self.settings_of(prefix.as_str())?.unwrap_or_default();
        let mut settings = before.clone();
        for key in keys {
            settings.unset(key);
        }
        self.put_policy(&prefix, &before, &settings);
        Ok(Ok(DONE))
    }

    fn put_policy(&mut self, prefix: &Prefix, before: &Settings, settings: &Settings) {
        if let Prefix::Under(name) = prefix
            && before.copies != settings.copies
        {
            let start = pb::CopiesWalkRecord::default();
            self.tx
                .put_message(keys::copies_walk(name.as_str()), &start);
        }
        let key = keys::policy(prefix.as_str());
        if settings.is_empty() {
            self.tx.delete(key);
        } else {
            self.tx.put_message(key, &pb::PolicyRecord::from(settings));
        }
    }

    /// One step of the walk over what lies under a prefix whose `copies` changed: bounded, since an
    /// entry must not hold up the log.
    pub fn count_copies(&mut self, count: &pb::CountCopies) -> Decision {
        let walk = keys::copies_walk(&count.prefix);
        let Some(record) = self.tx.message::<pb::CopiesWalkRecord>(&walk)? else {
            return Ok(Ok(DONE));
        };
        let mut after = record.after.to_vec();
        let (mut manifests, mut changed) = (0, 0);
        for prefix in keys::manifests_under(&count.prefix) {
            loop {
                let page = self.tx.page(&prefix, &after, STEP - manifests)?;
                if page.is_empty() {
                    break;
                }
                for (key, _) in page {
                    if let Some((repository, digest)) = keys::take_repository_manifest(&key)
                        && let Ok(name) = repository.parse::<RepositoryName>()
                    {
                        let copies = self.policy(&(&name).into())?.copies_by_prefix();
                        let digest = &digest;
                        changed += self.want_copies(&Held { repository, digest }, copies)?;
                    }
                    manifests += 1;
                    after = key;
                    if manifests >= STEP || changed >= STEP {
                        let after = after.into();
                        self.tx.put_message(walk, &pb::CopiesWalkRecord { after });
                        return Ok(Ok(DONE));
                    }
                }
            }
        }
        self.tx.delete(walk);
        Ok(Ok(DONE))
    }
}
