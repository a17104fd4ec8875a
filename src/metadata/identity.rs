//! Who this node is, kept in the `local` tree: its id, born with the data directory and never used
//! again (F8), its region, the cluster it belongs to, and a boot number that rises with every start.
//!
//! What must stay true: the boot number is on disk before anything is said or proposed under it
//! (A10), and the cluster is on disk before this node votes in it.

use super::kv::Batch;
use super::kv::Kv;
use crate::peers::ClusterIdentity;
use crate::peers::Identity;
use crate::proto::state::v1 as pb;
use crate::topology::NodeId;
use crate::topology::RegionName;
use crate::topology::Role;
use prost::Message;
use std::io;

const TREE: &str = "local";
const KEY: &[u8] = b"identity";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("this data directory belongs to region {found}, not {configured}")]
    OtherRegion { found: String, configured: String },
    #[error("a new data directory needs the name of its region: set node.region")]
    RegionMissing,
    #[error("metadata store")]
    Io(#[from] io::Error),
}

/// Creates the identity of a new data directory, or loads it; raises the boot number and syncs it
/// before returning (A10). Without `region`, whatever is stored. A directory that belongs to a
/// cluster already has `Identity::cluster`, and keeps the role that it joined with.
pub async fn load_or_create(
    kv: &Kv,
    region: Option<RegionName>,
    role: Role,
    peer_address: String,
) -> Result<Identity, IdentityError> {
    let mut record = match (load(kv)?, region) {
        (Some(record), configured) => {
            check_region(&record, configured)?;
            record
        }
        (None, Some(region)) => pb::IdentityRecord {
            node: rand::random_range(1..=u64::MAX),
            region: region.to_string(),
            ..pb::IdentityRecord::default()
        },
        (None, None) => return Err(IdentityError::RegionMissing),
    };
    record.boot += 1;
    if record.cluster_id.is_empty() {
        record.role = pb::Role::from(role).into();
    }
    store(kv, &record).await?;

    let region = record
        .region
        .parse()
        .map_err(|_| damaged("its region is not a region name"))?;
    let cluster = (!record.cluster_id.is_empty()).then(|| ClusterIdentity {
        cluster_id: record.cluster_id.clone(),
        lineage: record.lineage.clone(),
    });
    let role = Role::from(record.role());
    Ok(Identity::new(
        NodeId(record.node),
        region,
        role,
        record.boot,
        peer_address,
        cluster,
    ))
}

/// Notes which cluster this node is about to join, synced; sets it in `identity`.
pub async fn belong_to(
    kv: &Kv,
    identity: &Identity,
    cluster_id: &str,
    lineage: &str,
) -> io::Result<()> {
    note_cluster(kv, identity, cluster_id, lineage, false).await
}

/// What a new cluster is called.
pub fn new_cluster() -> ClusterIdentity {
    let random = || hex::encode(rand::random::<[u8; 16]>());
    ClusterIdentity {
        cluster_id: random(),
        lineage: random(),
    }
}

/// Notes the cluster that this node is about to begin, synced; sets it in `identity`.
pub async fn found(
    kv: &Kv,
    identity: &Identity,
    cluster_id: &str,
    lineage: &str,
) -> io::Result<()> {
    note_cluster(kv, identity, cluster_id, lineage, true).await
}

/// The cluster that it belongs to was begun, or was to be begun, by this node.
pub(super) fn is_founder(kv: &Kv) -> io::Result<bool> {
    Ok(load(kv)?.is_some_and(|record| record.founder))
}

async fn note_cluster(
    kv: &Kv,
    identity: &Identity,
    cluster_id: &str,
    lineage: &str,
    founder: bool,
) -> io::Result<()> {
    let mut record = load(kv)?.ok_or_else(|| damaged("it is missing"))?;
    record.cluster_id = cluster_id.to_owned();
    record.lineage = lineage.to_owned();
    record.founder = founder;
    store(kv, &record).await?;
    identity.set_cluster(ClusterIdentity {
        cluster_id: cluster_id.to_owned(),
        lineage: lineage.to_owned(),
    });
    Ok(())
}

fn check_region(
    record: &pb::IdentityRecord,
    configured: Option<RegionName>,
) -> Result<(), IdentityError> {
    match configured {
        Some(configured) if configured.as_str() != record.region => {
            Err(IdentityError::OtherRegion {
                found: record.region.clone(),
                configured: configured.to_string(),
            })
        }
        _ => Ok(()),
    }
}

fn load(kv: &Kv) -> io::Result<Option<pb::IdentityRecord>> {
    let Some(bytes) = kv.tree(TREE)?.get(KEY)? else {
        return Ok(None);
    };
    let record = pb::IdentityRecord::decode(bytes).map_err(|_| damaged("it cannot be decoded"))?;
    if record.node == 0 {
        return Err(damaged("its node id is 0"));
    }
    Ok(Some(record))
}

async fn store(kv: &Kv, record: &pb::IdentityRecord) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.put(KEY, record.encode_to_vec());
    kv.tree(TREE)?.apply(batch)?;
    kv.sync().await
}

fn damaged(what: &str) -> io::Error {
    let text = format!(
        "the identity in this data directory is damaged: {what}; move the directory aside and join again with an empty one"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(kv: &Kv, region: Option<&str>) -> Result<Identity, IdentityError> {
        let region = region.map(|name| name.parse().unwrap());
        load_or_create(kv, region, Role::Voter, "127.0.0.1:5010".to_owned()).await
    }

    #[tokio::test]
    async fn a_restart_keeps_the_id_and_raises_the_boot_number() {
        let kv = Kv::memory();
        let first = start(&kv, Some("r1")).await.unwrap();
        belong_to(&kv, &first, "c", "l").await.unwrap();
        let second = start(&kv.after_power_cut().unwrap(), None).await.unwrap();
        assert_eq!(second.node(), first.node());
        assert_ne!(second.node().0, 0);
        assert_eq!((first.boot(), second.boot()), (1, 2));
        assert_eq!(second.cluster(), first.cluster());
        assert_eq!(second.cluster().unwrap().lineage, "l");
    }

    #[tokio::test]
    async fn a_directory_of_another_region_is_refused() {
        let kv = Kv::memory();
        start(&kv, Some("r1")).await.unwrap();
        assert!(matches!(
            start(&kv, Some("r2")).await,
            Err(IdentityError::OtherRegion { .. })
        ));
        let empty = Kv::memory();
        assert!(matches!(
            start(&empty, None).await,
            Err(IdentityError::RegionMissing)
        ));
    }
}
