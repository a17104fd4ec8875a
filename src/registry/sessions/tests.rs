//! Sessions over restarts, time and many clients.

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
    fn leave(&self, sessions: &Sessions, of: &RepositoryName, file: &str, age_ms: u64) -> String {
        let signature = sessions.sign(of, &anonymous(), file);
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

fn anonymous() -> Principal {
    Principal::new(crate::access::Who::Anonymous)
}

fn live(sessions: &Sessions, of: &RepositoryName, id: &str) -> Option<Arc<Session>> {
    match sessions.get(of, &anonymous(), id) {
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
    let found = sessions.get(&of, &anonymous(), &id);
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
    assert!(sessions.get(&of, &anonymous(), &id).is_err());
}
