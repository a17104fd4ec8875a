//! Why a node does not run, and what its operator can do about it.

use crate::blobs;
use crate::certs::FileError;
use crate::certs::TokenInvalid;
use crate::cluster::membership::JoinError;
use crate::metadata;
use crate::metadata::identity::IdentityError;
use crate::metadata::kv;
use crate::server::ListenError;
use crate::topology::NodeId;
use crate::topology::RegionName;
use crate::topology::Role;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("use the data directory {path}")]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the data directory {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error(transparent)]
    Store(#[from] kv::OpenError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("start the client for other nodes")]
    Peers(#[from] reqwest::Error),
    #[error(transparent)]
    Metadata(#[from] metadata::StartError),
    #[error(transparent)]
    Blobs(#[from] blobs::OpenError),
    #[error("begin a new cluster")]
    Bootstrap(#[source] metadata::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Certificate(#[from] FileError),
    #[error("start TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(
        "the certificate in {path} is of region {found}, and this node is of region {expected}"
    )]
    OtherCertificate {
        found: RegionName,
        expected: RegionName,
        path: PathBuf,
    },
    #[error(
        "this node has no certificate to show to other nodes, and other machines reach its peer listener"
    )]
    NoCertificate,
    #[error(
        "the certificate in {path} is of node {found}, and this data directory is node {expected}"
    )]
    OtherNode {
        path: PathBuf,
        found: NodeId,
        expected: NodeId,
    },
    #[error("the certificate in {path} is of lineage {found}, and this node of lineage {expected}")]
    OtherLineage {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error("the join token is for a {found}, and this node is to be a {expected}")]
    OtherRole { found: Role, expected: Role },
    #[error(transparent)]
    Token(#[from] TokenInvalid),
    #[error("the join token is for region {found}, and this node is of region {expected}")]
    OtherToken {
        found: RegionName,
        expected: RegionName,
    },
    #[error("this node is in no cluster yet, and its configuration names no way into one")]
    Outside,
    #[error("read this node's own record")]
    State(#[source] io::Error),
    #[error("open the audit log, in audit/ of the data directory")]
    Audit(#[source] io::Error),
    #[error("serve on a listener")]
    Serve(#[source] io::Error),
}

impl NodeError {
    /// What an operator can do about it.
    pub fn next(&self) -> &'static str {
        match self {
            NodeError::DataDir { .. }
            | NodeError::Audit(_)
            | NodeError::Identity(IdentityError::Io(_)) => {
                "check that the directory is on a working disk and belongs to the user that runs this"
            }
            NodeError::InUse { .. } | NodeError::Store(kv::OpenError::Busy { .. }) => {
                "stop the process that uses it, or give this node a data directory of its own"
            }
            NodeError::Store(kv::OpenError::Damaged { .. }) => {
                "rejoin under a new id: move the data directory away (keep it until all is well), then start this node with an empty one and --join HOST:PORT of a healthy peer; what it held is copied from the other regions"
            }
            NodeError::Identity(_) | NodeError::Blobs(_) => {
                "name the data directory that belongs to this node, or an empty one for a new node"
            }
            NodeError::Listen(_) => "choose a free address of this machine, or stop what uses it",
            NodeError::Bootstrap(_) | NodeError::Outside => {
                "begin a new cluster with an empty data directory and --bootstrap, or enter one with --join HOST:PORT"
            }
            NodeError::Certificate(_) | NodeError::OtherCertificate { .. } => {
                "`roadstead certs check` looks at certificates; `roadstead certs issue --region REGION` makes one"
            }
            NodeError::OtherNode { .. } => {
                "move DATA_DIR/peer away: what is in it belongs to an earlier node; then start this one with --join-token, from `roadstead region add`"
            }
            NodeError::NoCertificate => {
                "set peer.ca, peer.cert and peer.key, or put DATA_DIR/peer back from where it was moved"
            }
            NodeError::OtherRole { .. } => {
                "start it with the --role that the token was made for, or make another token with `roadstead region add REGION --role ROLE`"
            }
            NodeError::Token(_) | NodeError::OtherToken { .. } => {
                "`roadstead region add REGION` on a node of the cluster prints a token for that region"
            }
            NodeError::Join(_) => {
                "`roadstead status` on a node of the cluster shows its regions; each region joins once, under a name of its own"
            }
            _ => "look into the log of this node",
        }
    }

    /// The configuration is at fault, not the machine.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            NodeError::InUse { .. }
                | NodeError::Identity(IdentityError::OtherRegion { .. })
                | NodeError::Listen(_)
                | NodeError::Outside
                | NodeError::Certificate(_)
                | NodeError::OtherCertificate { .. }
                | NodeError::NoCertificate
                | NodeError::Token(_)
                | NodeError::OtherToken { .. }
                | NodeError::OtherNode { .. }
                | NodeError::OtherLineage { .. }
                | NodeError::OtherRole { .. }
                | NodeError::Join(JoinError::Refused(_))
                | NodeError::Blobs(blobs::OpenError::OtherNode { .. })
        )
    }
}
