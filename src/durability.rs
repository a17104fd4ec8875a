//! The one answer to a failed fsync: stop. The kernel reports the error once and drops the dirty
//! pages, so a second attempt would succeed and lie (D9). A restart verifies what is on disk.

use std::io;

/// Logs what could not be synced, and ends the process at once.
pub fn sync_failed(what: &str, error: &io::Error) -> ! {
    tracing::error!(
        %what,
        %error,
        "a sync to disk failed: this process stops, since what it wrote may be lost; check the disk, then start it again"
    );
    std::process::abort()
}
