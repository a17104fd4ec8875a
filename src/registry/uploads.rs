//! Uploads of clients, on the node that has the session (registry/handing.rs finds it).
//!
//! What must stay true: a session's bytes are appended in order, one request at a time, and go to
//! other regions as they come; what a chunk's answer names is on disk; a refused chunk leaves the
//! session as it was; the blob is stored, synced and linked here before its upload is answered (D2).

use super::sending::Outgoing;
use super::sessions::{Done, Found, Open, Session, State};
use super::{Error, Registry, Repository, UploadId};
use crate::blobs::{ByteStream, Upload};
use crate::budget::Budget;
use crate::oci::{Algorithm, Digest};
use futures_util::{StreamExt, TryStreamExt};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

const SWEEP: Duration = Duration::from_secs(30);

/// Where a client says that bytes begin, and how many it says they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    pub at: Option<u64>,
    pub length: Option<u64>,
}

/// What a client asks of its upload.
pub enum Step {
    Offset,
    /// As `Offset`, asked by the node that is about to hand a body over: its client does not know.
    Length,
    Append(Chunk, ByteStream),
    /// The last bytes, which may be none, and what all are to be.
    Finish(Chunk, ByteStream, Digest),
    Cancel,
}

impl Open {
    fn begin(repository: &Repository, upload: Upload) -> Box<Open> {
        let copies = Outgoing::new(&repository.registry, &repository.name, upload.follow());
        Box::new(Open {
            upload,
            copies,
            broken_from: None,
        })
    }

    async fn take_in(&mut self, bytes: bytes::Bytes) -> Result<(), Error> {
        let came = bytes.len() as u64;
        self.upload.append(bytes).await?;
        self.copies.keep_pace(self.upload.len(), came).await;
        Ok(())
    }
}

impl Registry {
    /// Forgets sessions, copies, links and pins that ran out.
    pub(super) async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.inner.receiving.sweep();
            self.inner.sending.sweep();
            let swept = self
                .view()
                .log_time_ms()
                .map(|now| self.inner.blobs.pins().expire(now));
            let swept = swept.and_then(|()| self.inner.sessions.sweep());
            if let Err(error) = swept.and_then(|()| self.sweep_links()) {
                tracing::warn!(%error, "sweep uploads and links that have expired");
            }
        }
    }
}

impl Repository {
    /// `algorithm`: a hint of what the digest is going to be. `client`: whose share of the sessions it
    /// is of, when that is known.
    pub async fn start_upload(
        &self,
        algorithm: Option<Algorithm>,
        client: Option<IpAddr>,
    ) -> Result<UploadId, Error> {
        let inner = &self.registry.inner;
        let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
        inner.sessions.check_room(client)?;
        let upload = inner.blobs.staging().create(algorithm).await?;
        let open = Open::begin(self, upload);
        let id = inner
            .sessions
            .add(&self.name, &self.principal, algorithm, client, open)?;
        inner.metadata.sync().await?;
        Ok(id)
    }

    /// A whole blob in one request. Stored, synced and linked here when this returns.
    pub async fn put_blob(&self, digest: &Digest, mut body: ByteStream) -> Result<u64, Error> {
        let staging = self.registry.inner.blobs.staging();
        let mut open = Open::begin(self, staging.create(digest.algorithm()).await?);
        open.copies.begin()?;
        while let Some(bytes) = body.try_next().await.map_err(Error::ClientGone)? {
            open.take_in(bytes).await?;
        }
        self.keep_upload(open, digest).await
    }

    /// The session is this node's, or unknown. Bytes so far; of `Finish`, of the blob. A client that
    /// leaves ends its body, and not the work half-way.
    pub async fn upload_step_here(
        &self,
        id: &str,
        step: Step,
        budget: Budget,
    ) -> Result<u64, Error> {
        let session = match self.session(id)? {
            Found::Live(session) => session,
            Found::Done(done) => return told_again(done, step).await,
        };
        if let Step::Offset | Step::Length = step {
            return self.offset(&session, matches!(step, Step::Offset));
        }
        let Ok(state) = tokio::time::timeout_at(budget.deadline(), session.lock()).await else {
            return Err(Error::Unavailable(
                "another request is at this upload; ask for its offset and go on".to_owned(),
            ));
        };
        let repository = self.clone();
        let work = async move { repository.step(session, state, step).await };
        self.registry.owned(work).await
    }

    /// Alone with the session.
    async fn step(
        &self,
        session: Arc<Session>,
        mut state: OwnedMutexGuard<State>,
        step: Step,
    ) -> Result<u64, Error> {
        match (&mut *state, step) {
            (State::Ended, step) => match self.session(&session.id)? {
                Found::Done(done) => told_again(done, step).await,
                Found::Live(_) => Err(Error::UploadUnknown),
            },
            (_, Step::Offset | Step::Length) => Err(Error::UploadUnknown),
            (_, Step::Append(chunk, body)) => {
                self.append(&session, &mut state, chunk, body).await?;
                let open = self.open(&session, &mut state).await?;
                Ok(open.upload.sync().await?)
            }
            (_, Step::Finish(chunk, body, digest)) => {
                self.append(&session, &mut state, chunk, body).await?;
                self.finish(session, state, digest).await
            }
            (_, Step::Cancel) => {
                *state = State::Ended;
                self.registry.inner.blobs.staging().discard(&session.file);
                self.registry.inner.sessions.end(&session, None)?;
                Ok(0)
            }
        }
    }

    fn session(&self, id: &str) -> Result<Found, Error> {
        let sessions = &self.registry.inner.sessions;
        sessions.get(&self.name, &self.principal, id)
    }

    /// A request that is under way is not waited for.
    fn offset(&self, session: &Session, is_told: bool) -> Result<u64, Error> {
        let staging = self.registry.inner.blobs.staging();
        match session.try_lock().as_deref_mut() {
            Some(State::Open(open)) => {
                open.broken_from = open.broken_from.filter(|_| !is_told);
                Ok(open.upload.len())
            }
            Some(State::Parked) => {
                let length = staging.parked_len(&session.file)?;
                length.ok_or(Error::UploadUnknown)
            }
            Some(State::Ended) => Err(Error::UploadUnknown),
            None => {
                session.is_told.fetch_or(is_told, Ordering::Relaxed);
                Ok(session.length.load(Ordering::Relaxed))
            }
        }
    }

    async fn open<'a>(
        &self,
        session: &Session,
        state: &'a mut State,
    ) -> Result<&'a mut Open, Error> {
        if let State::Parked = state {
            let staging = self.registry.inner.blobs.staging();
            let upload = match staging.reopen(&session.file, session.algorithm).await {
                Ok(upload) => upload,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    *state = State::Ended;
                    self.registry.inner.sessions.end(session, None)?;
                    return Err(Error::UploadUnknown);
                }
                Err(error) => return Err(error.into()),
            };
            *state = State::Open(Open::begin(self, upload));
        }
        match state {
            State::Open(open) => Ok(open),
            State::Parked | State::Ended => Err(Error::UploadUnknown),
        }
    }

    /// A client whose request broke off knows how far it came only if it asked; else it sends all
    /// of it again.
    async fn take_back_broken(
        &self,
        session: &Session,
        state: &mut State,
        chunk: Chunk,
    ) -> Result<(), Error> {
        let open = self.open(session, state).await?;
        let is_told = session.is_told.load(Ordering::Relaxed);
        if let (Some(from), None, false) = (open.broken_from, chunk.at, is_told)
            && let State::Open(open) = std::mem::replace(state, State::Parked)
        {
            open.upload.park(from).await?;
        }
        Ok(())
    }

    async fn append(
        &self,
        session: &Session,
        state: &mut State,
        chunk: Chunk,
        mut body: ByteStream,
    ) -> Result<(), Error> {
        self.take_back_broken(session, state, chunk).await?;
        let open = self.open(session, state).await?;
        let start = open.upload.len();
        if chunk.at.is_some_and(|at| at != start) {
            return Err(Error::UploadOffset { expected: start });
        }
        session.length.store(start, Ordering::Relaxed);
        session.is_told.store(false, Ordering::Relaxed);
        // Until it has ended well, wherever it may break off: at the client, or at a full disk.
        open.broken_from = chunk.at.is_none().then_some(start);
        let mut copies_begun = false;
        loop {
            let bytes = tokio::select! {
                bytes = body.next() => bytes,
                () = session.gives_way() => {
                    Some(Err(io::Error::other("another request goes on with this upload")))
                }
            };
            match bytes {
                Some(Ok(bytes)) => {
                    if !copies_begun {
                        open.copies.begin()?;
                        copies_begun = true;
                    }
                    open.take_in(bytes).await?;
                    session.length.store(open.upload.len(), Ordering::Relaxed);
                }
                Some(Err(error)) => {
                    open.upload.flush().await?;
                    return Err(Error::ClientGone(error));
                }
                None => break,
            }
        }
        let came = open.upload.flush().await? - start;
        open.broken_from = None;
        match chunk.length.filter(|length| came != *length) {
            None => Ok(()),
            Some(length) => {
                // Its bytes are taken back.
                if let State::Open(open) = std::mem::replace(state, State::Parked) {
                    open.upload.park(start).await?;
                }
                let message = format!("the chunk says {length} bytes and has {came}");
                Err(Error::SizeMismatch(message))
            }
        }
    }

    async fn finish(
        &self,
        session: Arc<Session>,
        mut state: OwnedMutexGuard<State>,
        digest: Digest,
    ) -> Result<u64, Error> {
        let State::Open(open) = std::mem::replace(&mut *state, State::Ended) else {
            return Err(Error::UploadUnknown);
        };
        let kept = self.keep_upload(open, &digest).await;
        let done = kept.as_ref().ok().map(|size| Done {
            digest,
            size: *size,
        });
        self.registry.inner.sessions.end(&session, done)?;
        kept
    }

    async fn keep_upload(&self, mut open: Box<Open>, digest: &Digest) -> Result<u64, Error> {
        let size = open.upload.flush().await?;
        let Open { upload, copies, .. } = *open;
        copies.finish(digest, size)?;
        let (registry, name, digest) = (self.registry.clone(), self.name.clone(), digest.clone());
        self.registry
            .owned(async move {
                let size = registry.keep(upload, &digest).await?;
                let index = registry.view().applied_index()?;
                registry.link(&name, &digest, index).await?;
                Ok(size)
            })
            .await
    }
}

/// The client did not hear that its upload is done, and asks again.
async fn told_again(done: Done, step: Step) -> Result<u64, Error> {
    match step {
        Step::Finish(_, mut body, digest) if digest == done.digest => {
            while let Some(Ok(_)) = body.next().await {}
            Ok(done.size)
        }
        _ => Err(Error::UploadUnknown),
    }
}
