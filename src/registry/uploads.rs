//! Uploads of clients: sessions of this node, with ids that are signed and bound to a repository.
//!
//! What must stay true: a session's bytes are appended in order, one request at a time, and go to
//! other regions as they come; the blob is stored, synced and linked here before its upload is
//! answered (D2).

use super::sending::Outgoing;
use super::{Error, Registry, Repository, UploadId};
use crate::blobs::{ByteStream, Upload};
use crate::oci::{Algorithm, Digest, RepositoryName};
use crate::topology::NodeId;
use aws_lc_rs::hmac;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

const IDLE: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const MOST: usize = 1000;
const SWEEP: Duration = Duration::from_secs(30);

pub(super) struct Uploads {
    node: NodeId,
    key: hmac::Key,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Clone)]
struct Session {
    open: Arc<tokio::sync::Mutex<Option<Open>>>,
    began: Instant,
    touched: Instant,
}

/// What a session writes to, and the copies that follow it.
struct Open {
    upload: Upload,
    copies: Outgoing,
}

impl Uploads {
    pub fn new(node: NodeId) -> Uploads {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>());
        Uploads {
            node,
            key,
            sessions: Mutex::default(),
        }
    }

    fn sign(&self, repository: &RepositoryName, random: &str) -> String {
        let bound = format!("{} {random} {repository}", self.node);
        hex::encode(&hmac::sign(&self.key, bound.as_bytes()).as_ref()[..16])
    }

    fn new_id(&self, repository: &RepositoryName) -> UploadId {
        let random = format!("{:032x}", rand::random::<u128>());
        let signature = self.sign(repository, &random);
        format!("{}-{random}-{signature}", self.node)
    }

    fn get(&self, repository: &RepositoryName, id: &str) -> Result<Session, Error> {
        let mut parts = id.split('-');
        let (Some(_), Some(random), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::UploadUnknown);
        };
        let expected = self.sign(repository, random);
        aws_lc_rs::constant_time::verify_slices_are_equal(
            expected.as_bytes(),
            signature.as_bytes(),
        )
        .map_err(|_| Error::UploadUnknown)?;
        let mut sessions = self.sessions.lock().expect("no panic while held");
        let session = sessions.get_mut(id).ok_or(Error::UploadUnknown)?;
        session.touched = Instant::now();
        Ok(session.clone())
    }

    fn remove(&self, id: &str) {
        self.sessions
            .lock()
            .expect("no panic while held")
            .remove(id);
    }

    fn sweep(&self) {
        let is_alive = |s: &Session| s.touched.elapsed() < IDLE && s.began.elapsed() < LONGEST;
        self.sessions
            .lock()
            .expect("no panic while held")
            .retain(|_, s| is_alive(s));
    }
}

impl Registry {
    /// Forgets sessions, copies, links and pins that ran out.
    pub(super) async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.inner.uploads.sweep();
            self.inner.receiving.sweep();
            self.inner.sending.sweep();
            let swept = self
                .view()
                .log_time_ms()
                .map(|now| self.inner.blobs.pins().expire(now));
            if let Err(error) = swept.and_then(|()| self.sweep_links()) {
                tracing::warn!(%error, "sweep links that have expired");
            }
        }
    }
}

impl Repository {
    pub async fn start_upload(&self, algorithm: Option<Algorithm>) -> Result<UploadId, Error> {
        let inner = &self.registry.inner;
        let upload = inner
            .blobs
            .staging()
            .create(algorithm.unwrap_or(Algorithm::Sha256))
            .await?;
        let id = inner.uploads.new_id(&self.name);
        let now = Instant::now();
        let copies = Outgoing::new(&self.registry, &self.name, upload.follow());
        let open = Arc::new(tokio::sync::Mutex::new(Some(Open { upload, copies })));
        let mut sessions = inner.uploads.sessions.lock().expect("no panic while held");
        if sessions.len() >= MOST {
            return Err(Error::Unavailable(format!(
                "{MOST} uploads are open at this node; end some first"
            )));
        }
        sessions.insert(
            id.clone(),
            Session {
                open,
                began: now,
                touched: now,
            },
        );
        Ok(id)
    }

    /// Bytes so far.
    pub async fn upload_offset(&self, id: &str) -> Result<u64, Error> {
        let session = self.registry.inner.uploads.get(&self.name, id)?;
        let open = session.open.lock().await;
        let open = open.as_ref().ok_or(Error::UploadUnknown)?;
        Ok(open.upload.len())
    }

    /// Appends `body`. `at` is where the client says that it starts, `length` how long it says that
    /// it is; a chunk of another length than it says ends the session, since its bytes are written.
    pub async fn append_upload(
        &self,
        id: &str,
        at: Option<u64>,
        length: Option<u64>,
        mut body: ByteStream,
    ) -> Result<u64, Error> {
        let session = self.registry.inner.uploads.get(&self.name, id)?;
        let mut session = session.open.lock().await;
        let open = session.as_mut().ok_or(Error::UploadUnknown)?;
        let start = open.upload.len();
        if at.is_some_and(|at| at != start) {
            return Err(Error::UploadOffset { expected: start });
        }
        let mut copies_begun = false;
        while let Some(bytes) = body.next().await {
            match bytes {
                Ok(bytes) => {
                    if !copies_begun {
                        open.copies.begin()?;
                        copies_begun = true;
                    }
                    let came = bytes.len() as u64;
                    open.upload.append(bytes).await?;
                    open.copies.keep_pace(open.upload.len(), came).await;
                }
                Err(error) => {
                    open.upload.flush().await?;
                    return Err(Error::ClientGone(error));
                }
            }
        }
        let now = open.upload.flush().await?;
        if let Some(length) = length.filter(|length| now - start != *length) {
            *session = None;
            self.registry.inner.uploads.remove(id);
            return Err(Error::SizeMismatch(format!(
                "the chunk says {length} bytes and has {}",
                now - start
            )));
        }
        Ok(now)
    }

    /// The blob is stored, synced and linked here when this returns; its size.
    pub async fn finish_upload(&self, id: &str, digest: &Digest) -> Result<u64, Error> {
        let session = self.registry.inner.uploads.get(&self.name, id)?;
        let open = session.open.lock().await.take();
        let Open { mut upload, copies } = open.ok_or(Error::UploadUnknown)?;
        self.registry.inner.uploads.remove(id);
        let size = upload.flush().await?;
        copies.finish(digest, size);
        let (registry, name, digest) = (self.registry.clone(), self.name.clone(), digest.clone());
        self.registry
            .owned(async move {
                let size = registry.keep(upload, &digest).await?;
                registry.link(&name, &digest).await?;
                Ok(size)
            })
            .await
    }

    pub async fn cancel_upload(&self, id: &str) -> Result<(), Error> {
        self.registry.inner.uploads.get(&self.name, id)?;
        self.registry.inner.uploads.remove(id);
        Ok(())
    }
}
