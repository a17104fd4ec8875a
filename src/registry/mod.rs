//! What a registry does: manifests, blobs and uploads of repositories, on this node's disk, its
//! peers and the replicated state. Knows no HTTP and no gRPC.
//!
//! What must stay true: nobody gets a repository but by `authorize`; a blob is served only through a
//! repository that it is linked to; a push is
//! acknowledged only with receipts from enough regions (D3); a peer is answered from local bytes
//! only (F5); what a client started and may not be left half done runs in a task of the node.

mod arrivals;
mod blobs;
mod catalog;
mod copies;
mod error;
mod fetch;
mod going;
mod handing;
mod inventory;
mod links;
mod manifests;
mod passing;
mod receipts;
mod sending;
mod sessions;
mod uploads;

pub use crate::metadata::Read;
pub use blobs::resolve_all;
pub use error::Error;
pub use handing::answer;
pub use uploads::{Chunk, Step};

use crate::access::AccountName;
pub use crate::access::Action;
use crate::access::CredentialId;
use crate::access::Principal;
use crate::access::Rights;
use crate::access::Who;
use crate::blobs::BlobStore;
pub use crate::blobs::ByteStream;
use crate::clock::wall_ms;
use crate::metadata::Metadata;
use crate::metadata::View;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::RepositoryName;
use crate::oci::Tag;
use crate::peers::Peers;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::topology::RegionName;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::mpsc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Metadata,
    blobs: BlobStore,
    peers: Peers,
    metrics: Metrics,
    tasks: Tasks,
    fetches: fetch::Fetches,
    sessions: sessions::Sessions,
    receiving: copies::Receiving,
    sending: sending::Sending,
    /// The installed snapshot after which what is lost was reported last.
    compared: AtomicU64,
    /// Whole blobs are read against their digest one at a time.
    checking: tokio::sync::Mutex<()>,
    has_accounts: bool,
}

pub struct Parts {
    pub metadata: Metadata,
    pub blobs: BlobStore,
    /// What comes with the store: copies that proved bad.
    pub bad_copies: mpsc::Receiver<Digest>,
    pub peers: Peers,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// False: whoever reaches this node may do everything.
    pub has_accounts: bool,
}

/// The only way to a repository: a handler cannot get one without `authorize`.
#[derive(Clone)]
pub struct Repository {
    registry: Registry,
    name: RepositoryName,
    principal: Principal,
    rights: Rights,
}

/// As the client sent it, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    FromTo(u64, u64),
    From(u64),
    Last(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Local,
    Peer(RegionName),
}

pub struct BlobBody {
    pub size: u64,
    /// What `body` carries; the whole blob when no range was asked for.
    pub range: Range<u64>,
    pub source: Source,
    pub body: ByteStream,
}

#[derive(Clone, Debug)]
pub struct BlobStat {
    pub size: u64,
    pub source: Source,
}

/// RFC 9110 section 13.1: digests, or `*`.
#[derive(Clone, Debug, Default)]
pub struct Precondition {
    pub if_match: Vec<String>,
    pub if_none_match: Vec<String>,
}

pub struct PutManifest {
    pub reference: Reference,
    /// Further tags that the manifest gets, all or nothing.
    pub tags: Vec<Tag>,
    pub content_type: Option<String>,
    pub bytes: Bytes,
    pub precondition: Precondition,
}

#[derive(Debug)]
pub struct ManifestPut {
    pub digest: Digest,
    pub subject: Option<Digest>,
    pub tags: Vec<Tag>,
    pub warnings: Vec<String>,
}

/// Names its node and is signed (design 7.1); what a client sees in Location.
pub type UploadId = String;

impl Registry {
    /// Starts its loops, so it must be called within a runtime: sessions and links that ran out are
    /// swept, and files are compared with the record once this start is announced.
    pub fn start(parts: Parts) -> io::Result<Registry> {
        let Parts {
            metadata,
            blobs,
            bad_copies,
            peers,
            metrics,
            tasks,
            has_accounts,
        } = parts;
        let inner = Inner {
            sessions: sessions::Sessions::load(
                metadata.identity().node(),
                metadata.local(),
                blobs.staging().clone(),
            )?,
            metadata,
            blobs,
            peers,
            metrics,
            tasks,
            fetches: fetch::Fetches::default(),
            receiving: copies::Receiving::default(),
            sending: sending::Sending::default(),
            compared: AtomicU64::new(0),
            checking: tokio::sync::Mutex::default(),
            has_accounts,
        };
        let registry = Registry {
            inner: Arc::new(inner),
        };
        registry.until_stopped(registry.clone().sweep());
        registry.until_stopped(registry.clone().keep_inventory());
        registry.until_stopped(registry.clone().report_bad_copies(bad_copies));
        Ok(registry)
    }

    /// Runs a loop of this node; it ends wherever it is when the node stops.
    fn until_stopped(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.tasks.stop_token();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Runs `work` to its end, also when the caller goes away.
    async fn owned<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.inner.tasks.to_the_end(work).await
    }

    /// A peer took the request and has authorized it. None: the principal's name is not one.
    pub fn for_peer(&self, principal: &str, repository: &RepositoryName) -> Option<Repository> {
        let who = match principal {
            "anonymous" if self.inner.has_accounts => Who::Anonymous,
            "anonymous" => Who::Everyone,
            "local" => Who::Local,
            name => self.named(name)?,
        };
        Some(Repository {
            registry: self.clone(),
            name: repository.clone(),
            principal: Principal::new(who),
            rights: Rights::ADMIN,
        })
    }

    /// An account by its name alone, as a peer gives it that has seen its credentials. One that is not
    /// known here yet may do nothing of its own.
    fn named(&self, name: &str) -> Option<Who> {
        let name: AccountName = name.parse().ok()?;
        let account = self.view().account(&name).ok().flatten();
        let credentials = account.map(|account| account.credentials(wall_ms()));
        let credential = credentials.unwrap_or_default().into_iter().next();
        let credential = credential.unwrap_or(CredentialId(String::new()));
        Some(Who::Account { name, credential })
    }

    /// The one door. By the state as it is now, and before it is looked whether there is such a
    /// repository: who may not see it is told the same of one that is not there.
    pub fn authorize(
        &self,
        principal: &Principal,
        action: Action,
        repository: &RepositoryName,
    ) -> Result<Repository, Error> {
        let rights = self.view().rights(principal, repository, wall_ms())?;
        if !rights.has_any(action.rights()) {
            return Err(Error::NotAllowed {
                action,
                repository: repository.clone(),
            });
        }
        Ok(Repository {
            registry: self.clone(),
            name: repository.clone(),
            principal: principal.clone(),
            rights,
        })
    }

    pub fn region(&self) -> &RegionName {
        self.inner.metadata.identity().region()
    }

    /// Total and free bytes of the volume with the blobs; zeros when it cannot say.
    pub fn disk(&self) -> (u64, u64) {
        self.inner.blobs.disk().unwrap_or_else(|error| {
            tracing::warn!(%error, "ask for the free space of the blob volume");
            (0, 0)
        })
    }

    /// `<lineage>:<applied index>`
    pub fn index_token(&self) -> String {
        let cluster = self.inner.metadata.identity().cluster();
        let lineage = cluster.map(|cluster| cluster.lineage).unwrap_or_default();
        format!("{lineage}:{}", *self.inner.metadata.applied().borrow())
    }

    /// By what this node knows without asking: it has some state to serve.
    pub fn takes_pulls(&self) -> bool {
        *self.inner.metadata.applied().borrow() > 0
    }

    /// By what this node knows without asking: a quorum answers, and this node counts.
    pub fn takes_pushes(&self) -> bool {
        let metadata = &self.inner.metadata;
        let is_announced = *metadata.boot_applied().borrow();
        is_announced && metadata.status().writable && !self.is_draining()
    }

    /// Its copies do not count any more.
    fn is_draining(&self) -> bool {
        let own = self.view().node(self.inner.metadata.identity().node());
        matches!(own, Ok(Some(own)) if own.draining)
    }

    fn view(&self) -> View {
        self.inner.metadata.view()
    }
}

impl Repository {
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Anyone may pull from it.
    pub fn is_public(&self) -> io::Result<bool> {
        let policy = self.registry.view().policy(&(&self.name).into())?;
        Ok(policy.public.value)
    }
}

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{Error, handing, sessions};
    use crate::access::{Principal, Who};
    use crate::blobs::Staging;
    use crate::metadata::kv::Tree;
    use crate::oci::RepositoryName;
    use crate::proto::peer::v1::UploadAnswer;
    use crate::topology::NodeId;
    use std::io;

    pub fn answered(answer: UploadAnswer) -> Result<u64, Error> {
        handing::answered(answer)
    }

    pub struct Sessions(sessions::Sessions);

    impl Sessions {
        pub fn load(node: NodeId, notes: Tree, staging: Staging) -> io::Result<Sessions> {
            sessions::Sessions::load(node, notes, staging).map(Sessions)
        }

        pub fn sign(&self, of: &RepositoryName, random: &str) -> String {
            self.0.sign(of, &Principal::new(Who::Anonymous), random)
        }

        pub fn owner(&self, id: &str) -> Option<Option<NodeId>> {
            self.0.owner(id).ok()
        }

        pub fn knows(&self, of: &RepositoryName, id: &str) -> bool {
            self.0.get(of, &Principal::new(Who::Anonymous), id).is_ok()
        }
    }
}
