//! Reads of the replicated state: no network, no clock. A view sees the latest applied entry at
//! each call, so two calls may see two states; what must fit together is read in one call.

mod referrers;

use super::keys;
use super::kv::Tree;
use super::raft_types::{decode, invalid};
use super::state;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::policy::Wanted;
use crate::proto::state::v1 as pb;
use crate::topology::{NodeId, RegionName, Role};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

#[derive(Clone)]
pub struct View {
    pub(super) tree: Tree,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub node: NodeId,
    /// False: a cache copy, which serves and does not count.
    pub counted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub size: u64,
    pub refs: u64,
    pub holders: Vec<Holder>,
    /// By policies of prefixes.
    pub wanted: Wanted,
}

#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub id: NodeId,
    pub region: RegionName,
    pub peer: String,
    pub role: Role,
    pub boot: u64,
    pub listed: bool,
    pub gone: bool,
    pub draining: bool,
    pub version: String,
}

impl NodeInfo {
    /// A6: a member that keeps blobs, not draining, not gone, and has listed its files.
    pub fn is_live(&self) -> bool {
        self.role.keeps_blobs() && self.listed && !self.gone && !self.draining
    }
}

#[derive(Clone, Debug)]
pub struct Referrer {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub artifact_type: String,
    pub annotations_json: String,
}

#[derive(Clone, Debug)]
pub struct Cluster {
    pub cluster_id: String,
    pub lineage: String,
    pub ack: u32,
    pub copies: u32,
}

/// Referenced blobs with one set of counted holders, of which as many copies are wanted.
#[derive(Clone, Debug)]
pub struct Placement {
    pub holders: Vec<NodeId>,
    pub wanted: Wanted,
    pub blobs: u64,
    pub bytes: u64,
}

impl View {
    pub fn new(tree: Tree) -> View {
        View { tree }
    }

    pub(super) fn message<T: Message + Default>(&self, key: &[u8]) -> io::Result<Option<T>> {
        self.tree
            .get(key)?
            .map(|bytes| decode("state record", &bytes))
            .transpose()
    }

    pub fn applied_index(&self) -> io::Result<u64> {
        Ok(state::applied(&self.tree)?.last.unwrap_or_default().index)
    }

    /// The applied index, and the hash of the state there.
    pub fn state_hash(&self) -> io::Result<(u64, [u8; 32])> {
        loop {
            let (index, hash) = state::state_hash(&self.tree)?;
            // Both or neither of one entry: read again when one came between.
            if self.applied_index()? == index {
                return Ok((index, hash));
            }
        }
    }

    pub fn cluster(&self) -> io::Result<Option<Cluster>> {
        let record: Option<pb::ClusterRecord> = self.message(keys::CLUSTER)?;
        Ok(record.map(|record| Cluster {
            cluster_id: record.cluster_id,
            lineage: record.lineage,
            ack: record.ack,
            copies: record.copies,
        }))
    }

    pub fn log_time_ms(&self) -> io::Result<u64> {
        Ok(self
            .message::<pb::TimeRecord>(keys::TIME)?
            .unwrap_or_default()
            .now_ms)
    }

    pub fn has_repository(&self, repository: &RepositoryName) -> io::Result<bool> {
        Ok(self
            .tree
            .get(&keys::repository(repository.as_str()))?
            .is_some())
    }

    /// What a tag names.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> io::Result<Option<Digest>> {
        let record =
            self.message::<pb::TagRecord>(&keys::tag(repository.as_str(), tag.as_str()))?;
        record
            .map(|record| record.digest.parse().map_err(invalid))
            .transpose()
    }

    pub fn has_manifest(&self, repository: &RepositoryName, digest: &Digest) -> io::Result<bool> {
        Ok(self
            .tree
            .get(&keys::repository_manifest(repository.as_str(), digest))?
            .is_some())
    }

    /// Only when the repository holds it.
    pub fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<Option<StoredManifest>> {
        if !self.has_manifest(repository, digest)? {
            return Ok(None);
        }
        let record = self.message::<pb::ManifestRecord>(&keys::manifest(digest))?;
        let bytes = self.tree.get(&keys::manifest_bytes(digest))?;
        Ok(record.zip(bytes).map(|(record, bytes)| StoredManifest {
            digest: digest.clone(),
            media_type: record.media_type,
            bytes,
        }))
    }

    pub fn manifest_by_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> io::Result<Option<StoredManifest>> {
        loop {
            let Some(digest) = self.tag(repository, tag)? else {
                return Ok(None);
            };
            if let Some(manifest) = self.manifest(repository, &digest)? {
                return Ok(Some(manifest));
            }
            // Deleted between the two reads; the tag has gone or moved with it.
            if self.tag(repository, tag)?.as_ref() == Some(&digest) {
                return Err(invalid(format!(
                    "tag {tag} of {repository} names a manifest that is not there"
                )));
            }
        }
    }

    pub fn manifest_record(&self, digest: &Digest) -> io::Result<Option<pb::ManifestRecord>> {
        self.message(&keys::manifest(digest))
    }

    /// In byte order, strictly after `after`.
    pub fn tags(
        &self,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> io::Result<Vec<String>> {
        self.names(&keys::tags(repository.as_str()), after, limit)
    }

    pub fn repositories(&self, after: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        self.names(keys::REPOSITORIES, after, limit)
    }

    pub(super) fn names(
        &self,
        prefix: &[u8],
        after: Option<&str>,
        limit: usize,
    ) -> io::Result<Vec<String>> {
        let after = after.map(|after| [prefix, after.as_bytes()].concat());
        let pairs = self.tree.prefix_page(prefix, after.as_deref(), limit)?;
        let name = |key: &Bytes| String::from_utf8(key[prefix.len()..].to_vec()).map_err(invalid);
        pairs.iter().map(|(key, _)| name(key)).collect()
    }

    pub fn blob(&self, digest: &Digest) -> io::Result<Option<Blob>> {
        match self.message::<pb::BlobRecord>(&keys::blob(digest))? {
            Some(record) => self.with_holders(digest, &record).map(Some),
            None => Ok(None),
        }
    }

    pub fn blob_size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let record = self.message::<pb::BlobRecord>(&keys::blob(digest))?;
        Ok(record.map(|record| record.size))
    }

    fn with_holders(&self, digest: &Digest, record: &pb::BlobRecord) -> io::Result<Blob> {
        let prefix = keys::holders(digest);
        let mut holders = Vec::new();
        for (key, value) in self.tree.prefix_page(&prefix, None, usize::MAX)? {
            let counted = decode::<pb::HolderRecord>("holder record", &value)?.counted;
            if let Some((node, _)) = keys::take_node(&key[prefix.len()..]) {
                holders.push(Holder { node, counted });
            }
        }
        Ok(Blob {
            size: record.size,
            refs: record.refs,
            holders,
            wanted: Wanted::of(record),
        })
    }

    /// A manifest of the repository names the blob.
    pub fn is_blob_linked(&self, repository: &RepositoryName, digest: &Digest) -> io::Result<bool> {
        Ok(self
            .tree
            .get(&keys::link(repository.as_str(), digest))?
            .is_some())
    }

    /// Repositories with a manifest that names the blob, in order.
    pub fn repositories_with(&self, digest: &Digest, limit: usize) -> io::Result<Vec<String>> {
        self.names(&keys::links(digest), None, limit)
    }

    /// Index of the last DeleteBlob of this pair: local links from before it are dead (A21).
    pub fn blob_unlinked_at(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<u64> {
        let stored = self
            .tree
            .get(&keys::unlinked(repository.as_str(), digest))?;
        Ok(stored
            .and_then(|bytes| bytes.as_ref().try_into().ok())
            .map_or(0, u64::from_be_bytes))
    }

    /// Manifests of the repository that name the blob and do not link it.
    pub fn missed_by(
        &self,
        repository: &RepositoryName,
        blob: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> io::Result<Vec<Digest>> {
        let prefix = keys::missing(repository.as_str(), blob);
        let after = after.map(|after| keys::missing_in(repository.as_str(), blob, after));
        let found = self.tree.prefix_page(&prefix, after.as_deref(), limit)?;
        let manifest = |(key, _): &(Bytes, Bytes)| Some(keys::take_digest(&key[prefix.len()..])?.0);
        Ok(found.iter().filter_map(manifest).collect())
    }

    /// Known blobs after `after`, in key order.
    pub fn blobs(&self, after: Option<&Digest>, limit: usize) -> io::Result<Vec<(Digest, Blob)>> {
        let after = after.map(keys::blob);
        let mut blobs = Vec::new();
        for (key, value) in self
            .tree
            .prefix_page(keys::BLOBS, after.as_deref(), limit)?
        {
            let record: pb::BlobRecord = decode("blob record", &value)?;
            if let Some((digest, _)) = keys::take_digest(&key[1..]) {
                let blob = self.with_holders(&digest, &record)?;
                blobs.push((digest, blob));
            }
        }
        Ok(blobs)
    }

    /// What the record says that `node` holds, counted or not, after `after`.
    pub fn held_by(
        &self,
        node: NodeId,
        after: Option<&Digest>,
        limit: usize,
    ) -> io::Result<Vec<(Digest, bool)>> {
        let prefix = keys::held_by(node);
        let after = after.map(|after| keys::held(node, after));
        let mut held = Vec::new();
        for (key, value) in self.tree.prefix_page(&prefix, after.as_deref(), limit)? {
            if let Some((digest, _)) = keys::take_digest(&key[prefix.len()..]) {
                held.push((digest, value.first() == Some(&1)));
            }
        }
        Ok(held)
    }

    pub fn nodes(&self) -> io::Result<Vec<NodeInfo>> {
        let mut nodes = Vec::new();
        for (key, value) in self.tree.prefix_page(keys::NODES, None, usize::MAX)? {
            if let Some((id, _)) = keys::take_node(&key[1..]) {
                nodes.push(node_info(id, decode("node record", &value)?)?);
            }
        }
        Ok(nodes)
    }

    pub fn node(&self, id: NodeId) -> io::Result<Option<NodeInfo>> {
        let record: Option<pb::NodeRecord> = self.message(&keys::node(id))?;
        record.map(|record| node_info(id, record)).transpose()
    }

    pub fn is_removed(&self, id: NodeId) -> io::Result<bool> {
        Ok(self.tree.get(&keys::removed(id))?.is_some())
    }

    /// One row per set of holders and number of copies that there is: a handful, however many blobs.
    pub fn placements(&self) -> io::Result<Vec<Placement>> {
        let mut placements = Vec::new();
        for (key, value) in self.tree.prefix_page(keys::PLACEMENTS, None, usize::MAX)? {
            let record: pb::PlacementRecord = decode("placement record", &value)?;
            let (holders, wanted) = keys::take_placement(&key);
            placements.push(Placement {
                holders,
                wanted,
                blobs: record.blobs,
                bytes: record.bytes,
            });
        }
        Ok(placements)
    }

    /// How many regions among the members keep blobs.
    pub fn data_regions(&self) -> io::Result<usize> {
        let nodes = self.nodes()?;
        let regions: BTreeSet<_> = nodes
            .iter()
            .filter(|n| n.role.keeps_blobs())
            .map(|n| &n.region)
            .collect();
        Ok(regions.len())
    }

    /// Some repository holds a manifest that names a blob in vain.
    pub fn is_any_missing(&self) -> io::Result<bool> {
        let found = self.tree.prefix_page(keys::MISSING, None, 1)?;
        Ok(!found.is_empty())
    }

    /// Referenced blobs with fewer live holders than are wanted.
    pub fn under_replicated(&self) -> io::Result<u64> {
        let wanted = self.copies_wanted()?;
        let nodes: BTreeMap<NodeId, NodeInfo> =
            self.nodes()?.into_iter().map(|n| (n.id, n)).collect();
        let live_regions = |placement: &Placement| {
            let live = placement
                .holders
                .iter()
                .filter_map(|id| nodes.get(id))
                .filter(|n| n.is_live());
            live.map(|n| &n.region).collect::<BTreeSet<_>>().len()
        };
        let placements = self.placements()?;
        Ok(placements
            .iter()
            .filter(|p| live_regions(p) < wanted(p.wanted))
            .map(|p| p.blobs)
            .sum())
    }
}

fn node_info(id: NodeId, record: pb::NodeRecord) -> io::Result<NodeInfo> {
    let node = record.node.clone().unwrap_or_default();
    let role = pb::Role::try_from(node.role).unwrap_or(pb::Role::Unspecified);
    Ok(NodeInfo {
        id,
        region: node.region.parse().map_err(invalid)?,
        peer: node.peer,
        role: Role::from(role),
        boot: record.boot,
        listed: record.listed,
        gone: record.gone,
        draining: record.draining,
        version: record.version,
    })
}
