//! Who did what: each failed login, denial, change of who may do what, and delete, as one JSON line in
//! `DATA_DIR/audit/audit.log`, which is rotated.
//!
//! What must stay true: no secret is ever in a line; a line is written before the answer that it is
//! about; what cannot be written is an ERROR in the log of the node, and the request goes on.

use serde::Deserialize;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const FILE: &str = "audit.log";
/// A file is put aside at this size; so many are kept, the oldest goes.
const FILE_MAX: u64 = 32 << 20;
const FILES_KEPT: usize = 10;
/// Of what clients send, so much is repeated.
const TEXT_MAX: usize = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    /// Refused: no right to it, or a wrong login.
    Denied,
    /// Asked for in vain: what was asked is not possible, or not now.
    Failed,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC; set when it is written.
    #[serde(default)]
    pub at: String,
    #[serde(default)]
    pub region: String,
    /// The account, or what was given as its name; `anonymous` without a login.
    pub who: String,
    /// Address of the client; absent on the node's own socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `login`, `pull`, `delete-tag`, `user-add` …
    pub action: String,
    /// Repository, account, prefix …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    pub outcome: Outcome,
    /// Why not; or what exactly was changed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The entry of the log that did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// Its id in the log of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
}

impl Event {
    pub fn new(who: &str, action: &str, target: impl ToString, outcome: Outcome) -> Event {
        Event {
            at: String::new(),
            region: String::new(),
            who: short(who),
            from: None,
            action: action.to_owned(),
            target: short(&target.to_string()),
            outcome,
            detail: String::new(),
            index: None,
            request: String::new(),
        }
    }

    pub fn from(mut self, client: Option<std::net::IpAddr>) -> Event {
        self.from = client.map(|client| client.to_string());
        self
    }

    pub fn because(mut self, detail: impl ToString) -> Event {
        self.detail = short(&detail.to_string());
        self
    }

    pub fn at_index(mut self, index: u64) -> Event {
        self.index = Some(index);
        self
    }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    region: String,
    file_max: u64,
    file: Mutex<Open>,
}

struct Open {
    file: File,
    size: u64,
}

fn open(dir: &Path) -> io::Result<Open> {
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.join(FILE))?;
    let size = file.metadata()?.len();
    Ok(Open { file, size })
}

fn aside(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{FILE}.{number}"))
}

fn rotate(dir: &Path) -> io::Result<Open> {
    let older = (1..FILES_KEPT).rev().map(|number| aside(dir, number));
    let mut to = aside(dir, FILES_KEPT);
    // The last one may be missing too: put aside before, when a new one could not be opened.
    for from in older.chain([dir.join(FILE)]) {
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        to = from;
    }
    open(dir)
}

impl Audit {
    pub fn open(dir: &Path, region: &str) -> io::Result<Audit> {
        Audit::with_files_of(dir, region, FILE_MAX)
    }

    fn with_files_of(dir: &Path, region: &str, file_max: u64) -> io::Result<Audit> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        Ok(Audit {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                region: region.to_owned(),
                file_max,
                file: Mutex::new(open(dir)?),
            }),
        })
    }

    pub fn write(&self, mut event: Event) {
        event.at = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        event.region.clone_from(&self.inner.region);
        if let Some(request) = crate::request_id::RequestId::current() {
            event.request = request.to_string();
        }
        if let Err(error) = self.append(&event) {
            tracing::error!(%error, dir = %self.inner.dir.display(), "write the audit log");
        }
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut open = self.inner.file.lock().expect("no panic while held");
        if open.size > 0 && open.size + line.len() as u64 > self.inner.file_max {
            *open = rotate(&self.inner.dir)?;
        }
        // In one write, so that a line is there as a whole or not at all.
        open.file.write_all(&line)?;
        open.size += line.len() as u64;
        Ok(())
    }

    /// Lines from `since` on (RFC 3339 in UTC compares as text), the last `most` of them, oldest
    /// first. A line that cannot be read, as one that a power cut has cut, is left out. Reads files.
    pub fn read(&self, since: OffsetDateTime, most: usize) -> io::Result<Vec<Event>> {
        let mut found = std::collections::VecDeque::new();
        let names = (1..=FILES_KEPT)
            .rev()
            .map(|number| aside(&self.inner.dir, number));
        for name in names.chain([self.inner.dir.join(FILE)]) {
            let file = match File::open(&name) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for line in BufReader::new(file).split(b'\n') {
                let Ok(event) = serde_json::from_slice::<Event>(&line?) else {
                    continue;
                };
                let at = OffsetDateTime::parse(&event.at, &Rfc3339);
                if at.is_ok_and(|at| at >= since) {
                    if found.len() == most {
                        found.pop_front();
                    }
                    found.push_back(event);
                }
            }
        }
        Ok(found.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lines_are_kept_over_rotation_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("audit");
        let audit = Audit::with_files_of(&place, "r1", 1000).unwrap();
        let before = OffsetDateTime::now_utc();
        for i in 0..200 {
            let event = Event::new("ann", "delete-tag", format!("team/app:{i}"), Outcome::Done);
            audit.write(event.at_index(i));
        }
        let all = audit.read(before, usize::MAX).unwrap();
        assert!(all.len() > 20 && all.len() < 100, "{}", all.len());
        let indexes: Vec<u64> = all.iter().filter_map(|event| event.index).collect();
        assert!(
            indexes.is_sorted() && indexes.last() == Some(&199),
            "{indexes:?}"
        );
        assert_eq!(all[0].region, "r1");
        assert_eq!(audit.read(before, 5).unwrap().len(), 5);
        assert!(audit.read(OffsetDateTime::now_utc(), 5).unwrap().is_empty());
        let mode = std::fs::metadata(place.join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(audit);
        let again = Audit::open(&place, "r1").unwrap();
        assert_eq!(again.read(before, usize::MAX).unwrap(), all);
    }

    #[test]
    fn a_file_that_is_gone_stops_no_later_line() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::with_files_of(dir.path(), "r1", 300).unwrap();
        let before = OffsetDateTime::now_utc();
        let write = |n| audit.write(Event::new("ann", "delete-tag", n, Outcome::Done));
        write(1);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        (2..9).for_each(write);
        let kept = audit.read(before, usize::MAX).unwrap();
        assert_eq!(kept.last().unwrap().target, "8");
    }

    #[test]
    fn what_clients_send_is_cut_and_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), "r1").unwrap();
        let name = format!("a\n{{\"who\":\"admin\"}}{}", "x".repeat(9999));
        audit.write(Event::new(&name, "login", "", Outcome::Denied));
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.len() < 1000);
    }
}
