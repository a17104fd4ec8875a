//! The upload sessions of this node: ids, which are signed and bound to repository and account, and
//! records of their own, so that a session goes on after a restart.
//!
//! What must stay true: an id is given out once its record is on disk; a session is used by one
//! request at a time; one that ended is unknown from then on, save that the last ones to end well
//! are remembered for a client that did not hear of it.

use super::Error;
use super::sending::Outgoing;
use crate::access::Principal;
use crate::blobs::{Staging, Upload};
use crate::clock::wall_ms;
use crate::metadata::kv::{Batch, Tree};
use crate::oci::{Algorithm, Digest, RepositoryName};
use crate::proto::state::v1::UploadRecord;
use crate::topology::NodeId;
use aws_lc_rs::{constant_time, hmac};
use bytes::Bytes;
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

pub(super) const IDLE: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const MOST: usize = 2000;
/// Of one client address, or of the proxy that it comes through.
const MOST_OF_ONE: usize = 1000;
/// Sessions that ended well and are remembered.
const REMEMBERED: usize = 1000;
/// A request that brings nothing for so long makes way for another one of the same session: its
/// client is most likely the same one, come again after its connection broke.
const GIVES_WAY: Duration = Duration::from_secs(5);

/// In the tree of this node's own notes.
const KEY: &[u8] = b"upload-key";
const RECORDS: &[u8] = b"upload/";

pub(super) struct Sessions {
    node: NodeId,
    key: hmac::Key,
    notes: Tree,
    staging: Staging,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    live: HashMap<String, Arc<Session>>,
    done: VecDeque<(String, Done)>,
}

/// A session that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub digest: Digest,
    pub size: u64,
}

pub(super) enum Found {
    Live(Arc<Session>),
    Done(Done),
}

pub(super) struct Session {
    pub id: String,
    pub file: String,
    pub algorithm: Algorithm,
    /// None when it was begun before the last start.
    client: Option<IpAddr>,
    began: Instant,
    touched: Mutex<Instant>,
    state: Arc<tokio::sync::Mutex<State>>,
    waiting: AtomicUsize,
    /// As far as the request that is under way has come.
    pub length: AtomicU64,
    /// Its client asked how far that is.
    pub is_told: AtomicBool,
}

pub(super) enum State {
    Open(Box<Open>),
    /// On disk only, until it is asked for.
    Parked,
    Ended,
}

/// What a session writes to, and the copies that follow it.
pub(super) struct Open {
    pub upload: Upload,
    pub copies: Outgoing,
    /// Where a request without a range began that broke off, until its client asks how far it came.
    pub broken_from: Option<u64>,
}

fn record_key(id: &str) -> Vec<u8> {
    [RECORDS, id.as_bytes()].concat()
}

impl Table {
    fn check_room(&self, client: Option<IpAddr>) -> Result<(), Error> {
        let of_client = |session: &&Arc<Session>| session.client == client;
        if client.is_some() && self.live.values().filter(of_client).count() >= MOST_OF_ONE {
            return Err(Error::TooMany(format!(
                "{MOST_OF_ONE} uploads from this address are open here: finish or cancel some; idle ones end after an hour"
            )));
        }
        match self.live.len() < MOST {
            true => Ok(()),
            false => Err(Error::Unavailable(format!(
                "{MOST} uploads are open at this node: push to another region, or later"
            ))),
        }
    }
}

impl Sessions {
    /// Those of the last start go on; whatever else lies in staging is left from a crash, and goes.
    pub fn load(node: NodeId, notes: Tree, staging: Staging) -> io::Result<Sessions> {
        let secret = match notes.get(KEY)? {
            Some(secret) => secret,
            None => {
                let secret = Bytes::copy_from_slice(&rand::random::<[u8; 32]>());
                let mut batch = Batch::default();
                batch.put(KEY, secret.clone());
                notes.apply(batch)?;
                secret
            }
        };
        let (mut live, mut gone) = (HashMap::new(), Batch::default());
        for (key, value) in notes.prefix_page(RECORDS, None, usize::MAX)? {
            let id = String::from_utf8_lossy(&key[RECORDS.len()..]).into_owned();
            let record = UploadRecord::decode(value).map_err(io::Error::other)?;
            match staging.parked_len(&record.file)? {
                Some(length) => drop(live.insert(id.clone(), parked(id, record, length))),
                None => gone.delete(key.to_vec()),
            }
        }
        notes.apply(gone)?;
        let kept: Vec<&str> = live.values().map(|session| session.file.as_str()).collect();
        staging.sweep(|file| kept.contains(&file))?;
        if !live.is_empty() {
            tracing::info!(uploads = live.len(), "uploads of the last start can go on");
        }
        Ok(Sessions {
            node,
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            notes,
            staging,
            table: Mutex::new(Table {
                live,
                done: VecDeque::new(),
            }),
        })
    }

    pub(super) fn sign(&self, of: &RepositoryName, by: &Principal, random: &str) -> String {
        let bound = format!("{} {random} {of} {}", self.node, by.as_str());
        hex::encode(&hmac::sign(&self.key, bound.as_bytes()).as_ref()[..16])
    }

    pub fn check_room(&self, client: Option<IpAddr>) -> Result<(), Error> {
        let table = self.table.lock().expect("no panic while held");
        table.check_room(client)
    }

    /// Not yet on disk when this returns: a sync of the metadata store follows.
    pub fn add(
        &self,
        of: &RepositoryName,
        by: &Principal,
        algorithm: Algorithm,
        client: Option<IpAddr>,
        open: Box<Open>,
    ) -> Result<String, Error> {
        let random = format!("{:032x}", rand::random::<u128>());
        let signature = self.sign(of, by, &random);
        let id = format!("{}-{random}-{signature}", self.node);
        let record = UploadRecord {
            file: open.upload.name(),
            algorithm: algorithm.as_str().to_owned(),
            began_ms: wall_ms(),
        };
        let mut table = self.table.lock().expect("no panic while held");
        table.check_room(client)?;
        let mut batch = Batch::default();
        batch.put(record_key(&id), record.encode_to_vec());
        self.notes.apply(batch)?;
        let mut session = Session::new(id.clone(), record.file, algorithm, State::Open(open));
        session.client = client;
        table.live.insert(id.clone(), Arc::new(session));
        Ok(id)
    }

    /// The node that has the session; None when it is this one. The id is checked there.
    pub fn owner(&self, id: &str) -> Result<Option<NodeId>, Error> {
        let node = id.split('-').next().and_then(|node| node.parse().ok());
        match node {
            Some(node) if node == self.node => Ok(None),
            Some(node) => Ok(Some(node)),
            None => Err(Error::UploadUnknown),
        }
    }

    pub fn get(&self, of: &RepositoryName, by: &Principal, id: &str) -> Result<Found, Error> {
        let mut parts = id.split('-').skip(1);
        let (Some(random), Some(signature), None) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::UploadUnknown);
        };
        let expected = self.sign(of, by, random);
        constant_time::verify_slices_are_equal(expected.as_bytes(), signature.as_bytes())
            .map_err(|_| Error::UploadUnknown)?;
        let table = self.table.lock().expect("no panic while held");
        if let Some(session) = table.live.get(id) {
            session.touch();
            return Ok(Found::Live(session.clone()));
        }
        match table.done.iter().find(|(done, _)| done == id) {
            Some((_, done)) => Ok(Found::Done(done.clone())),
            None => Err(Error::UploadUnknown),
        }
    }

    /// Its bytes go with its state, which the caller holds.
    pub fn end(&self, session: &Session, done: Option<Done>) -> io::Result<()> {
        let mut table = self.table.lock().expect("no panic while held");
        table.live.remove(&session.id);
        if let Some(done) = done {
            if table.done.len() >= REMEMBERED {
                table.done.pop_front();
            }
            table.done.push_back((session.id.clone(), done));
        }
        let mut batch = Batch::default();
        batch.delete(record_key(&session.id));
        self.notes.apply(batch)
    }

    /// Ends those that nobody has used for long.
    pub fn sweep(&self) -> io::Result<()> {
        let over: Vec<_> = {
            let table = self.table.lock().expect("no panic while held");
            let over = table.live.values().filter(|session| session.is_over());
            over.cloned().collect()
        };
        for session in over {
            // One that is in use is over when that request is.
            if let Ok(mut state) = session.state.try_lock() {
                *state = State::Ended;
                self.staging.discard(&session.file);
                self.end(&session, None)?;
            }
        }
        Ok(())
    }
}

fn parked(id: String, record: UploadRecord, length: u64) -> Arc<Session> {
    let algorithm = record.algorithm.parse().unwrap_or(Algorithm::Sha256);
    let age = Duration::from_millis(wall_ms().saturating_sub(record.began_ms));
    let mut session = Session::new(id, record.file, algorithm, State::Parked);
    session.began = session.began.checked_sub(age).unwrap_or(session.began);
    session.length = AtomicU64::new(length);
    Arc::new(session)
}

impl Session {
    fn new(id: String, file: String, algorithm: Algorithm, state: State) -> Session {
        let now = Instant::now();
        Session {
            id,
            file,
            algorithm,
            client: None,
            began: now,
            touched: Mutex::new(now),
            state: Arc::new(tokio::sync::Mutex::new(state)),
            waiting: AtomicUsize::new(0),
            length: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
        }
    }

    fn touch(&self) {
        *self.touched.lock().expect("no panic while held") = Instant::now();
    }

    fn is_over(&self) -> bool {
        let touched = *self.touched.lock().expect("no panic while held");
        touched.elapsed() >= IDLE || self.began.elapsed() >= LONGEST
    }

    /// Alone with the session. A request that is under way is waited for.
    pub async fn lock(&self) -> OwnedMutexGuard<State> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.state.clone().lock_owned().await
    }

    /// None while a request is under way.
    pub fn try_lock(&self) -> Option<OwnedMutexGuard<State>> {
        self.state.clone().try_lock_owned().ok()
    }

    /// For the request that has the session and whose client is silent: returns when another one
    /// waits for it.
    pub async fn gives_way(&self) {
        loop {
            tokio::time::sleep(GIVES_WAY).await;
            if self.waiting.load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
