//! A node without its disk full of blobs and its listeners: who it is, whom it knows, and its
//! metadata, built from parts that are handed to it. A machine brings its own clock, store and
//! network, a simulation others.

use super::NodeError;
use super::certificates::Certificates;
use crate::certs::PeerTls;
use crate::clock::Clock;
use crate::cluster::membership;
use crate::cluster::membership::JoinError;
use crate::config::Entrance;
use crate::config::Profile;
use crate::metadata;
use crate::metadata::Kv;
use crate::metadata::Metadata;
use crate::metadata::identity;
use crate::peers::Connector;
use crate::peers::Identity;
use crate::peers::Peers;
use crate::registry::Registry;
use crate::rpc;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::topology::RegionName;
use crate::topology::Role;
use std::net::IpAddr;
use std::path::PathBuf;

/// What a member stands on.
pub struct Parts {
    pub kv: Kv,
    pub clock: Clock,
    pub connector: Connector,
    /// Blobs are read from here, as all other calls are by `connector`.
    pub source: Option<IpAddr>,
    /// Where snapshots lie.
    pub snapshots: PathBuf,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// What it shows to other nodes.
    pub certificates: Certificates,
}

/// Where it is to stand. A directory that is in use knows its region and role best.
pub struct Place {
    pub region: Option<RegionName>,
    pub role: Role,
    /// host:port at which others reach it.
    pub peer_address: String,
    pub entrance: Entrance,
    pub profile: Profile,
}

pub struct Member {
    entrance: Entrance,
    profile: Profile,
    metadata: Metadata,
    peers: Peers,
    tls: Option<PeerTls>,
    tasks: Tasks,
}

impl Member {
    /// It runs when this returns, and may not be in its cluster yet. Waits for the first node of
    /// the cluster that it is to join.
    pub async fn start(place: Place, parts: Parts) -> Result<Member, NodeError> {
        let Parts {
            kv,
            clock,
            connector,
            source,
            snapshots,
            metrics,
            tasks,
            certificates,
        } = parts;
        let identity =
            identity::load_or_create(&kv, place.region, place.role, place.peer_address).await?;
        let prepared = certificates.prepare(&identity, &kv, &place.entrance, &tasks);
        let mut prepared = prepared.await?;
        let tls = prepared.tls.clone();
        let peers = Peers::new(identity.clone(), connector, source, tls.clone(), &tasks)?;
        if let (Entrance::Join(addresses), None) = (&place.entrance, identity.cluster()) {
            prepared.enroll(&peers, addresses, &tasks).await?;
            let profile = place.profile.as_str();
            membership::meet(&kv, &identity, &peers, addresses, profile, &tasks).await?;
        }
        let metadata = Metadata::start(metadata::Parts {
            kv,
            snapshots,
            identity,
            peers: peers.clone(),
            clock,
            timing: place.profile.timing(),
            metrics,
            tasks: tasks.clone(),
        })
        .await?;
        prepared.keep(&metadata, &tasks)?;
        Ok(Member {
            entrance: place.entrance,
            profile: place.profile,
            metadata,
            peers,
            tls,
            tasks,
        })
    }

    pub fn identity(&self) -> &Identity {
        self.metadata.identity()
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How its peer listener is to speak; None: plain.
    pub fn tls(&self) -> Option<&PeerTls> {
        self.tls.as_ref()
    }

    /// What its peer listener answers; without `registry`, nothing of blobs.
    pub fn router(&self, registry: Option<Registry>) -> axum::Router {
        let (metadata, peers) = (self.metadata.clone(), self.peers.clone());
        rpc::router(metadata, peers, registry, self.profile.as_str().to_owned())
    }

    /// Gets into its cluster, which may take as long as its peers let it wait. Its peer listener
    /// must answer by then, since a leader calls back.
    pub async fn enter(&self) -> Result<(), NodeError> {
        let identity = self.identity();
        // Its own start was recorded once, so it need not ask anyone: it serves at once, also when
        // no other node is left.
        let own = self.metadata.view().node(identity.node());
        let known = own.map_err(NodeError::State)?.is_some();
        match &self.entrance {
            Entrance::Bootstrap if !known => {
                let begun = self.metadata.bootstrap().await;
                begun.map_err(NodeError::Bootstrap)?;
            }
            Entrance::Join(addresses) if !known => {
                let profile = self.profile.as_str();
                membership::join(&self.metadata, &self.peers, addresses, profile, &self.tasks)
                    .await?;
            }
            Entrance::Join(addresses) if !self.is_in_its_role() => self.join_again(addresses),
            Entrance::Inside if identity.cluster().is_none() => return Err(NodeError::Outside),
            _ => {}
        }
        Ok(())
    }

    /// A crash may have come between becoming a learner and becoming a voter. What was done is not
    /// repeated.
    fn join_again(&self, addresses: &[String]) {
        let (metadata, peers, tasks) = (
            self.metadata.clone(),
            self.peers.clone(),
            self.tasks.clone(),
        );
        let (addresses, profile) = (addresses.to_vec(), self.profile.as_str());
        self.tasks.spawn(async move {
            match membership::join(&metadata, &peers, &addresses, profile, &tasks).await {
                Ok(()) | Err(JoinError::Stopped) => {}
                Err(error) => tracing::warn!(%error, "this node could not complete its join"),
            }
        });
    }

    fn is_in_its_role(&self) -> bool {
        let identity = self.identity();
        let status = self.metadata.status();
        let is_member = status.members.iter().any(|(id, _)| *id == identity.node());
        is_member && (!identity.role().votes() || status.voters.contains(&identity.node()))
    }
}
