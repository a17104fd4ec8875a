//! Certificates of nodes in a cluster that signs them itself: a new node gets its first one with a
//! join token; the key of the CA is in the replicated state, so that any member can answer, and so
//! that each renews its own without asking anyone.
//!
//! What must stay true: a certificate is issued only after the state let the key in (`UseJoinToken`),
//! so a token that was copied lets in one node; what it says of cluster, lineage and node is what
//! the member that signs knows, not what is asked for.

use super::membership::JoinError;
use super::membership::PAUSE;
use super::membership::wait;
use crate::budget::Budget;
use crate::certs;
use crate::certs::Authority;
use crate::certs::Bound;
use crate::certs::FileError;
use crate::certs::JoinToken;
use crate::certs::Material;
use crate::certs::Names;
use crate::certs::PeerTls;
use crate::certs::Store;
use crate::clock::wall_ms;
use crate::metadata::Metadata;
use crate::peers::Identity;
use crate::peers::PeerError;
use crate::peers::Peers;
use crate::peers::envelope::Invitation;
use crate::proto::peer::v1 as pb;
use crate::proto::state::v1 as state;
use crate::proto::state::v1::command::Body;
use crate::proto::state::v1::outcome::Result as Outcome;
use crate::tasks::Tasks;
use crate::topology::NodeId;
use crate::topology::RegionName;
use std::io;
use std::time::Duration;

const ENROLL: Duration = Duration::from_secs(35);
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// A certificate whose life is short, in tests, is looked at more often.
const LOOKS_IN_A_LIFE: u32 = 20;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("metadata store")]
    Io(#[from] io::Error),
}

/// Gets this node's first certificate: asks each address in turn, until one answers.
pub async fn enroll(
    peers: &Peers,
    token: &JoinToken,
    store: &Store,
    addresses: &[String],
    tasks: &Tasks,
) -> Result<Material, JoinError> {
    let identity = peers.identity();
    let key = store.key()?;
    let request = certs::request(&key)
        .map_err(|error| JoinError::Refused(format!("ask for a certificate: {error}")))?;
    let request = pb::EnrollRequest {
        request: request.into(),
        node: identity.node().0,
        region: identity.region().to_string(),
    };
    let mut pause = PAUSE;
    loop {
        for address in addresses {
            match peers.enroll(address, token, request.clone(), ENROLL).await {
                Ok(issued) => {
                    let ca: Vec<Vec<u8>> = issued.ca.iter().map(|ca| ca.to_vec()).collect();
                    store.save(&ca, &issued.certificate)?;
                    tracing::info!(address, "the cluster issued a certificate for this node");
                    return Ok(Material::load(&store.files())?);
                }
                Err(PeerError::Refused(_, why)) => return Err(JoinError::Refused(why)),
                Err(error) => tracing::info!(address, %error, "no certificate yet"),
            }
        }
        wait(&mut pause, tasks).await?;
    }
}

/// May the holder of this token be heard at all? Decided before its message is read, by what is
/// known here or at the leader.
pub async fn check(metadata: &Metadata, invitation: &Invitation) -> Result<(), SignError> {
    let used = used(invitation, NodeId(0), &[]);
    let read = metadata.read(|view| view.judge_join_token(&used)).await;
    match read {
        Ok(read) => read.value.map_err(SignError::Refused),
        Err(error) => Err(SignError::Unavailable(error.to_string())),
    }
}

/// Lets the key in, and signs a certificate for it.
pub async fn answer(
    metadata: &Metadata,
    invitation: &Invitation,
    request: pb::EnrollRequest,
) -> Result<pb::EnrollResponse, SignError> {
    let node = NodeId(request.node);
    let hash = certs::key_hash(&request.request)
        .map_err(|error| SignError::Refused(format!("not a request for a certificate: {error}")))?;
    if request.region != invitation.region || node.0 == 0 {
        return Err(SignError::Refused(format!(
            "the join token is for region {}, and a certificate for node {node} of region {} is asked for",
            invitation.region, request.region
        )));
    }
    let authority = authority(metadata)?;
    let used = Body::UseJoinToken(used(invitation, node, &hash));
    let decided = metadata.write(used, Budget::default()).await;
    match decided.map(|outcome| outcome.result) {
        Ok(Some(Outcome::Done(_))) => {}
        Ok(Some(Outcome::Refused(no))) => return Err(SignError::Refused(no.message)),
        Ok(_) => return Err(SignError::Unavailable("outcome unknown".to_owned())),
        Err(error) => return Err(SignError::Unavailable(error.to_string())),
    }
    let region: RegionName = request
        .region
        .parse()
        .map_err(|error| SignError::Refused(format!("{error}")))?;
    let certificate = sign(
        metadata.identity(),
        &authority,
        node,
        region,
        &request.request,
    )?;
    tracing::info!(%node, region = request.region, "issued a certificate for a node that joins");
    Ok(pb::EnrollResponse {
        certificate: certificate.into(),
        ca: vec![authority.certificate().to_vec().into()],
    })
}

fn used(invitation: &Invitation, node: NodeId, key_hash: &[u8]) -> state::UseJoinToken {
    state::UseJoinToken {
        id: invitation.id.clone(),
        secret_hash: invitation.secret_hash.clone().into(),
        key_hash: key_hash.to_vec().into(),
        node: node.0,
        region: invitation.region.clone(),
        now_ms: wall_ms(),
    }
}

/// Of this cluster; refused where operators bring certificates of their own.
fn authority(metadata: &Metadata) -> Result<Authority, SignError> {
    let Some(ca) = metadata.view().ca()? else {
        return Err(SignError::Refused(
            "this cluster does not sign certificates itself: issue one with `roadstead certs issue`, \
             and set peer.ca, peer.cert and peer.key"
                .to_owned(),
        ));
    };
    let certificate = ca.certificate.to_vec().into();
    Authority::load(certificate, ca.key.into())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()).into())
}

fn sign(
    signer: &Identity,
    authority: &Authority,
    node: NodeId,
    region: RegionName,
    request: &[u8],
) -> Result<Vec<u8>, SignError> {
    let Some(cluster) = signer.cluster() else {
        return Err(SignError::Unavailable(
            "this node is in no cluster yet".to_owned(),
        ));
    };
    let names = Names {
        region,
        extra: Vec::new(),
        bound: Some(Bound {
            cluster_id: cluster.cluster_id,
            lineage: cluster.lineage,
            node,
        }),
    };
    let signed = authority.sign(request, &names, certs::lifetime());
    let signed =
        signed.map_err(|error| SignError::Refused(format!("sign a certificate: {error}")))?;
    Ok(signed.to_vec())
}

/// Signs a new certificate for this node's own key, with the CA that its state holds: no other node
/// is needed, so that one that was cut off for long, or whose certificate ran out, comes back.
pub fn renew(metadata: &Metadata, store: &Store, tls: &PeerTls) -> Result<(), RenewError> {
    let identity = metadata.identity();
    let authority = authority(metadata)?;
    let request = certs::request(&store.key()?)
        .map_err(|error| SignError::Refused(format!("ask for a certificate: {error}")))?;
    let region = identity.region().clone();
    let certificate = sign(identity, &authority, identity.node(), region, &request)?;
    store.save_certificate(&certificate)?;
    tls.set(Material::load(&store.files())?);
    tracing::info!("renewed the certificate of this node");
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Renews it whenever less than a third of its life is left.
pub fn keep_certificate(metadata: &Metadata, store: Store, tls: PeerTls, tasks: &Tasks) {
    let (metadata, owner) = (metadata.clone(), tasks.clone());
    let look = LOOK_EVERY.min(certs::lifetime() / LOOKS_IN_A_LIFE);
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = owner.stopped() => return,
                () = tokio::time::sleep(look) => {}
            }
            if tls.is_to_be_renewed()
                && let Err(error) = renew(&metadata, &store, &tls)
            {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    "renew the certificate of this node; it is tried again"
                );
            }
        }
    });
}

/// What the first node made goes to the whole cluster, and then only lies there.
pub fn hand_over_ca(metadata: &Metadata, store: Store, tasks: &Tasks) {
    let (metadata, owner) = (metadata.clone(), tasks.clone());
    tasks.spawn(async move {
        let mut pause = PAUSE;
        loop {
            match hand_over(&metadata, &store).await {
                Ok(()) => return,
                Err(why) => tracing::info!(%why, "the CA is not in the replicated state yet"),
            }
            if wait(&mut pause, &owner).await.is_err() {
                return;
            }
        }
    });
}

async fn hand_over(metadata: &Metadata, store: &Store) -> Result<(), String> {
    use secrecy::ExposeSecret;
    let told = |error: FileError| error.to_string();
    let Some((certificate, key)) = store.ca_key().map_err(told)? else {
        return Ok(());
    };
    let put = state::PutCa {
        certificate: certificate.into(),
        key: key.expose_secret().to_owned(),
    };
    let written = metadata.write(Body::PutCa(put), Budget::default()).await;
    match written.map(|outcome| outcome.result) {
        Ok(Some(Outcome::Done(_))) => store.forget_ca_key().map_err(told),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}
