//! A thread that syncs for all who wait at once, since a sync for one takes as long as one for all.
//!
//! What must stay true: who is called back was waiting before the sync began; a sync that fails ends
//! the process (durability.rs).

use crate::durability;
use std::io;
use std::sync::mpsc;

/// Called once everything written before is on disk.
pub type Synced = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Cheap to clone; the thread ends with the last one.
#[derive(Clone)]
pub struct GroupCommit {
    what: &'static str,
    waiting: mpsc::Sender<Synced>,
}

impl GroupCommit {
    /// `sync` puts all that was written on disk. `what` it is, for errors.
    pub fn start(
        what: &'static str,
        sync: impl Fn() -> io::Result<()> + Send + 'static,
    ) -> io::Result<GroupCommit> {
        let (waiting, waits) = mpsc::channel::<Synced>();
        let thread = std::thread::Builder::new().name(format!("{what} sync"));
        thread.spawn(move || {
            while let Ok(first) = waits.recv() {
                let mut group = vec![first];
                group.extend(waits.try_iter());
                if let Err(error) = sync() {
                    durability::sync_failed(what, &error);
                }
                for done in group {
                    done(Ok(()));
                }
            }
        })?;
        Ok(GroupCommit { what, waiting })
    }

    pub fn then(&self, done: Synced) {
        if let Err(mpsc::SendError(done)) = self.waiting.send(done) {
            let what = self.what;
            done(Err(io::Error::other(format!("the {what} is closed"))));
        }
    }
}
