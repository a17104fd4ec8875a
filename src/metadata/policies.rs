//! Reads of policies, and of what follows from them: how many regions a push needs, and how many
//! copies a blob.

use super::View;
use super::keys;
use super::raft_types::decode;
use super::raft_types::invalid;
use crate::oci::RepositoryName;
use crate::policy;
use crate::policy::Defaults;
use crate::policy::Effective;
use crate::policy::Prefix;
use crate::policy::Settings;
use crate::policy::Wanted;
use crate::proto::state::v1 as pb;
use bytes::Bytes;
use std::io;

/// What a stored policy sets.
pub(super) fn settings(record: Bytes) -> io::Result<Settings> {
    let record: pb::PolicyRecord = decode("policy record", &record)?;
    Settings::try_from(&record).map_err(invalid)
}

impl View {
    /// What each prefix sets, in byte order.
    pub fn policies(&self) -> io::Result<Vec<(String, Settings)>> {
        let of = |(key, value): (Bytes, Bytes)| {
            let prefix =
                String::from_utf8(key[keys::POLICIES.len()..].to_vec()).map_err(invalid)?;
            Ok((prefix, settings(value)?))
        };
        let stored = self.tree.prefix_page(keys::POLICIES, None, usize::MAX)?;
        stored.into_iter().map(of).collect()
    }

    /// What this very prefix sets.
    pub fn policy_set(&self, prefix: &Prefix) -> io::Result<Settings> {
        let stored = self.tree.get(&keys::policy(prefix.as_str()))?;
        Ok(stored.map(settings).transpose()?.unwrap_or_default())
    }

    /// What counts where no prefix says anything.
    pub fn policy_defaults(&self) -> io::Result<Defaults> {
        let cluster: pb::ClusterRecord = self.message(keys::CLUSTER)?.unwrap_or_default();
        Ok(Defaults::from(&cluster))
    }

    /// What counts under the prefix.
    pub fn policy(&self, prefix: &Prefix) -> io::Result<Effective> {
        let set = |prefix: &str| {
            self.tree
                .get(&keys::policy(prefix))?
                .map(settings)
                .transpose()
        };
        policy::resolve(prefix, self.policy_defaults()?, set)
    }

    /// Regions that must hold a blob before a push to the repository that names it is acknowledged
    /// (A16).
    pub fn ack_needed(&self, repository: &RepositoryName) -> io::Result<usize> {
        let ack = self.policy(&repository.into())?.ack.value as usize;
        Ok(self.data_regions()?.min(ack).max(1))
    }

    /// Regions that are to hold a blob in the end, by what is wanted of it.
    pub fn copies_wanted(&self) -> io::Result<impl Fn(Wanted) -> usize + use<>> {
        let by_default = self.policy(&Prefix::All)?.copies.value;
        let regions = self.data_regions()?;
        Ok(move |wanted: Wanted| regions.min(wanted.copies(by_default) as usize).max(1))
    }

    /// A prefix whose `copies` changed, and under which blobs are yet to be counted anew.
    pub fn copies_walk(&self) -> io::Result<Option<String>> {
        Ok(self.names(keys::COPIES_WALKS, None, 1)?.pop())
    }
}
