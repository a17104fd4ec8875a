//! Where a node's certificates for other nodes come from: files of the operator, or the cluster,
//! which signs for itself what it needs; plain only on loopback.

use super::NodeError;
use crate::certs;
use crate::certs::Bound;
use crate::certs::FileError;
use crate::certs::JoinToken;
use crate::certs::Material;
use crate::certs::Names;
use crate::certs::PeerFiles;
use crate::certs::PeerTls;
use crate::certs::Store;
use crate::cluster::enrolling;
use crate::config::Config;
use crate::config::Entrance;
use crate::config::JoinTokenSource;
use crate::metadata::Kv;
use crate::metadata::Metadata;
use crate::metadata::identity;
use crate::peers::ClusterIdentity;
use crate::peers::Identity;
use crate::peers::Peers;
use crate::tasks::Tasks;
use std::path::Path;

pub enum Certificates {
    /// On loopback, and in a simulation.
    Plain,
    /// Of the operator.
    Configured(PeerFiles),
    /// Signed by the cluster, kept in the data directory.
    Issued {
        store: Store,
        token: Option<JoinTokenSource>,
    },
}

/// What a node shows to others, once it is known who it is.
pub struct Prepared {
    pub tls: Option<PeerTls>,
    /// A new node's word; it has no certificate yet.
    token: Option<JoinToken>,
    store: Option<Store>,
    /// Its certificate ran out, or cannot be used; its state has what signs a new one.
    must_renew: Option<NodeError>,
}

impl Certificates {
    pub fn of(config: &Config) -> Certificates {
        let store = Store::new(&config.data_dir);
        match &config.peer_tls {
            Some(files) => Certificates::Configured(files.clone()),
            None if config.is_peer_open() || config.join_token.is_some() || store.is_filled() => {
                Certificates::Issued {
                    store,
                    token: config.join_token.clone(),
                }
            }
            None => Certificates::Plain,
        }
    }

    /// The first node of a cluster picks what the cluster is called here, since its own certificate
    /// says so, and makes the CA before it notes that it is a founder.
    pub async fn prepare(
        self,
        identity: &Identity,
        kv: &Kv,
        entrance: &Entrance,
        tasks: &Tasks,
    ) -> Result<Prepared, NodeError> {
        let (store, token) = match self {
            Certificates::Plain => return Ok(Prepared::plain()),
            Certificates::Configured(files) => {
                let tls = open(&files, identity)?;
                tls.watch(files, false, tasks);
                return Ok(Prepared {
                    tls: Some(tls),
                    ..Prepared::plain()
                });
            }
            Certificates::Issued { store, token } => (store, token),
        };
        let is_new = identity.cluster().is_none();
        let mut prepared = Prepared::plain();
        if is_new && *entrance == Entrance::Bootstrap {
            let cluster = identity::new_cluster();
            let names = Names {
                region: identity.region().clone(),
                extra: Vec::new(),
                bound: Some(Bound {
                    cluster_id: cluster.cluster_id.clone(),
                    lineage: cluster.lineage.clone(),
                    node: identity.node(),
                }),
            };
            store.found(&cluster.cluster_id, &names, certs::lifetime())?;
            identity::found(kv, identity, &cluster.cluster_id, &cluster.lineage)
                .await
                .map_err(NodeError::State)?;
            tracing::info!(
                "made a CA for this cluster; it goes into the replicated state, so that every region can sign for a new one"
            );
        }
        if store.is_filled() {
            match open(&store.files(), identity) {
                Ok(tls) => {
                    prepared.must_renew = check_bound(&tls, &store, identity)?;
                    prepared.tls = Some(tls);
                }
                Err(error @ NodeError::Certificate(_)) if !is_new => {
                    let ca = certs::certificates(&store.files().ca)?.swap_remove(0);
                    prepared.tls = Some(PeerTls::new(Material::pinned(ca)?)?);
                    prepared.must_renew = Some(error);
                }
                Err(error) => return Err(error),
            }
        } else if let (Some(token), true) = (token, is_new) {
            let token = read_token(token, identity)?;
            let ca = token.ca.clone().into();
            prepared.tls = Some(PeerTls::new(Material::pinned(ca)?)?);
            prepared.token = Some(token);
        } else {
            return Err(NodeError::NoCertificate);
        }
        prepared.store = Some(store);
        Ok(prepared)
    }
}

fn open(files: &PeerFiles, identity: &Identity) -> Result<PeerTls, NodeError> {
    let material = Material::load(files)?;
    let region = material.leaf().map(|leaf| leaf.region.clone());
    if let Some(found) = region.filter(|region| region != identity.region()) {
        return Err(NodeError::OtherCertificate {
            found,
            expected: identity.region().clone(),
            path: files.own.cert.clone(),
        });
    }
    Ok(PeerTls::new(material)?)
}

/// The certificate that was issued must be of this very node. One of an earlier lineage is renewed: a
/// recovery gave the cluster another one.
fn check_bound(
    tls: &PeerTls,
    store: &Store,
    identity: &Identity,
) -> Result<Option<NodeError>, NodeError> {
    let material = tls.material();
    let Some(bound) = material.leaf().and_then(|leaf| leaf.bound.clone()) else {
        return Ok(None);
    };
    let path = store.files().own.cert;
    if bound.node != identity.node() {
        return Err(NodeError::OtherNode {
            path,
            found: bound.node,
            expected: identity.node(),
        });
    }
    let is_earlier = |mine: &ClusterIdentity| mine.lineage != bound.lineage;
    Ok(identity
        .cluster()
        .filter(is_earlier)
        .map(|mine| NodeError::OtherLineage {
            path,
            found: bound.lineage,
            expected: mine.lineage,
        }))
}

fn read_token(source: JoinTokenSource, identity: &Identity) -> Result<JoinToken, NodeError> {
    let word = match source {
        JoinTokenSource::Word(word) => word,
        JoinTokenSource::File(path) => {
            std::fs::read_to_string(&path).map_err(|source| read_failed(&path, source))?
        }
    };
    let token: JoinToken = word.parse()?;
    if token.region != *identity.region() {
        return Err(NodeError::OtherToken {
            found: token.region,
            expected: identity.region().clone(),
        });
    }
    if token.role != identity.role() {
        return Err(NodeError::OtherRole {
            found: token.role,
            expected: identity.role(),
        });
    }
    Ok(token)
}

fn read_failed(path: &Path, source: std::io::Error) -> FileError {
    FileError::Read {
        path: path.to_owned(),
        source,
    }
}

impl Prepared {
    fn plain() -> Prepared {
        Prepared {
            tls: None,
            token: None,
            store: None,
            must_renew: None,
        }
    }

    /// Gets the first certificate, where there is none yet.
    pub async fn enroll(
        &mut self,
        peers: &Peers,
        addresses: &[String],
        tasks: &Tasks,
    ) -> Result<(), NodeError> {
        let (Some(token), Some(store), Some(tls)) = (self.token.take(), &self.store, &self.tls)
        else {
            return Ok(());
        };
        tls.set(enrolling::enroll(peers, &token, store, addresses, tasks).await?);
        Ok(())
    }

    /// Once the state is open.
    pub fn keep(self, metadata: &Metadata, tasks: &Tasks) -> Result<(), NodeError> {
        let (Some(store), Some(tls)) = (self.store, self.tls) else {
            return Ok(());
        };
        if let Some(error) = self.must_renew {
            if let Err(why) = enrolling::renew(metadata, &store, &tls) {
                tracing::error!(%why, "the certificate of this node cannot be used, and no new one can be signed");
                return Err(error);
            }
            tracing::warn!(%error, "the certificate of this node could not be used, and was renewed");
        }
        tls.watch(store.files(), true, tasks);
        enrolling::hand_over_ca(metadata, store.clone(), tasks);
        enrolling::keep_certificate(metadata, store, tls, tasks);
        Ok(())
    }
}
