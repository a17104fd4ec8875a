//! The upload sessions of this node: ids, which are signed and bound to repository and account, and
//! records of their own, so that a session goes on after a restart.
//!
//! What must stay true: an id is given out once its record is on disk; a session is used by one
//! request at a time; one that ended is unknown from then on, save that the last ones to end well
//! are remembered for a client that did not hear of it.

use super::sending::Outgoing;
use super::{Error, Principal};
use crate::blobs::{Staging, Upload};
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
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
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

    fn sign(&self, of: &RepositoryName, by: &Principal, random: &str) -> String {
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
mod tests {
    use super::*;
    use crate::blobs::BlobStore;
    use crate::metadata::Kv;
    use crate::telemetry::Metrics;

    const ME: NodeId = NodeId(7);

    struct World {
        dir: tempfile::TempDir,
        notes: Tree,
        staging: Staging,
    }

    impl World {
        async fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let opened = BlobStore::open(dir.path(), ME, Metrics::new()).await;
            let (store, _lost) = opened.unwrap();
            World {
                dir,
                notes: Kv::memory().tree("local").unwrap(),
                staging: store.staging().clone(),
            }
        }

        fn start(&self) -> Sessions {
            Sessions::load(ME, self.notes.clone(), self.staging.clone()).unwrap()
        }

        /// What a start of the node leaves that had this session.
        fn leave(
            &self,
            sessions: &Sessions,
            of: &RepositoryName,
            file: &str,
            age_ms: u64,
        ) -> String {
            let signature = sessions.sign(of, &Principal::Anonymous, file);
            let id = format!("{ME}-{file}-{signature}");
            let record = UploadRecord {
                file: file.to_owned(),
                algorithm: "sha512".to_owned(),
                began_ms: wall_ms() - age_ms,
            };
            let mut batch = Batch::default();
            batch.put(record_key(&id), record.encode_to_vec());
            self.notes.apply(batch).unwrap();
            std::fs::write(self.dir.path().join("staging").join(file), b"12345").unwrap();
            id
        }

        fn files(&self) -> Vec<String> {
            let files = std::fs::read_dir(self.dir.path().join("staging")).unwrap();
            let mut names: Vec<_> = files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn live(sessions: &Sessions, of: &RepositoryName, id: &str) -> Option<Arc<Session>> {
        match sessions.get(of, &Principal::Anonymous, id) {
            Ok(Found::Live(session)) => Some(session),
            Ok(Found::Done(_)) | Err(_) => None,
        }
    }

    #[tokio::test]
    async fn a_restart_keeps_sessions_and_sweeps_what_is_nobodys() {
        let world = World::new().await;
        let of: RepositoryName = "team/app".parse().unwrap();
        let before = world.start();
        let id = world.leave(&before, &of, "aa", 0);
        let lost = world.leave(&before, &of, "bb", 0);
        std::fs::remove_file(world.dir.path().join("staging/bb")).unwrap();
        std::fs::write(world.dir.path().join("staging/stray"), b"x").unwrap();

        let after = world.start();
        let session = live(&after, &of, &id).unwrap();
        assert_eq!(session.algorithm, Algorithm::Sha512);
        assert_eq!(session.length.load(Ordering::Relaxed), 5);
        assert!(live(&after, &of, &lost).is_none());
        assert_eq!(world.files(), ["aa"]);
        let other = "team/other".parse().unwrap();
        assert!(
            live(&after, &other, &id).is_none(),
            "bound to its repository"
        );
        assert!(
            live(&after, &of, &id.replace("aa", "bb")).is_none(),
            "signed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_nobody_uses_goes_with_its_bytes() {
        let world = World::new().await;
        let of: RepositoryName = "team/app".parse().unwrap();
        let before = world.start();
        let idle = world.leave(&before, &of, "aa", 0);
        let used = world.leave(&before, &of, "bb", 0);
        let old = world.leave(&before, &of, "cc", 23 * 3600 * 1000);
        let sessions = world.start();
        tokio::time::advance(IDLE / 2).await;
        assert!(live(&sessions, &of, &used).is_some());
        sessions.sweep().unwrap();
        assert_eq!(world.files(), ["aa", "bb", "cc"]);
        let held = live(&sessions, &of, &old).unwrap();
        let under_way = held.lock().await;
        tokio::time::advance(IDLE / 2).await;
        sessions.sweep().unwrap();
        assert!(live(&sessions, &of, &idle).is_none());
        assert!(live(&sessions, &of, &used).is_some());
        assert_eq!(world.files(), ["bb", "cc"], "one that is in use stays");
        drop(under_way);
        sessions.sweep().unwrap();
        assert_eq!(world.files(), ["bb"], "a day is the most, however busy");
        let notes = world.notes.prefix_page(RECORDS, None, 10).unwrap();
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn one_client_cannot_take_all_sessions() {
        let mut table = Table::default();
        let address = |n| Some(IpAddr::from([192, 0, 2, n]));
        let add = |table: &mut Table, client: Option<IpAddr>| {
            let id = table.live.len().to_string();
            let algorithm = Algorithm::Sha256;
            let mut session = Session::new(id.clone(), String::new(), algorithm, State::Parked);
            session.client = client;
            table.live.insert(id, Arc::new(session));
        };
        for _ in 0..MOST_OF_ONE {
            table.check_room(address(1)).unwrap();
            add(&mut table, address(1));
        }
        assert!(matches!(
            table.check_room(address(1)),
            Err(Error::TooMany(_))
        ));
        table.check_room(address(2)).unwrap();
        table.check_room(None).unwrap();
        while table.live.len() < MOST {
            add(&mut table, None);
        }
        assert!(matches!(
            table.check_room(address(2)),
            Err(Error::Unavailable(_))
        ));
    }

    #[tokio::test]
    async fn what_ended_well_is_remembered_for_a_while() {
        let world = World::new().await;
        let of: RepositoryName = "team/app".parse().unwrap();
        let before = world.start();
        let id = world.leave(&before, &of, "aa", 0);
        let sessions = world.start();
        let session = live(&sessions, &of, &id).unwrap();
        let done = Done {
            digest: Digest::of(Algorithm::Sha256, b"12345"),
            size: 5,
        };
        sessions.end(&session, Some(done.clone())).unwrap();
        let found = sessions.get(&of, &Principal::Anonymous, &id);
        assert!(matches!(found, Ok(Found::Done(found)) if found == done));
        for i in 0..REMEMBERED {
            let other = Session::new(
                i.to_string(),
                String::new(),
                session.algorithm,
                State::Ended,
            );
            sessions.end(&other, Some(done.clone())).unwrap();
        }
        assert!(sessions.get(&of, &Principal::Anonymous, &id).is_err());
    }
}
