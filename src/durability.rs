//! What protects what is on disk. The one answer to a failed fsync: stop. The kernel reports the
//! error once and drops the dirty pages, so a second attempt would succeed and lie (D9); a restart
//! verifies what is on disk. And a reserve of free space, so that a full disk refuses pushes before
//! it stops Raft's log (A14).

use crate::stderr;
use std::io;
use std::path::Path;

/// Kept free by manifests, at most: what deletes, ticks and snapshots need to make room again.
/// Blobs keep twice as much free, so that they are refused first.
const RESERVE: u64 = 256 << 20;
/// Of a small volume, one part in so many.
const RESERVE_PART: u64 = 20;
/// Tests set another reserve, in bytes.
const TEST_RESERVE: &str = "ROADSTEAD_TEST__RESERVE";

/// What is about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Blobs,
    Manifests,
}

/// Total and free bytes of the volume of `path`.
pub fn volume(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// `StorageFull` when the volume of `path` is down to its reserve.
pub fn check_room(path: &Path, room: Room) -> io::Result<()> {
    check_room_for(path, room, 0)
}

/// `StorageFull` when it would be, with so many bytes more on it.
pub fn check_room_for(path: &Path, room: Room, bytes: u64) -> io::Result<()> {
    let (total, free) = volume(path)?;
    let reserve = std::env::var(TEST_RESERVE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| reserve(total));
    match free >= needed(reserve, room).saturating_add(bytes) {
        true => Ok(()),
        false => Err(io::ErrorKind::StorageFull.into()),
    }
}

fn reserve(total: u64) -> u64 {
    RESERVE.min(total / RESERVE_PART)
}

fn needed(reserve: u64, room: Room) -> u64 {
    match room {
        Room::Blobs => reserve.saturating_mul(2),
        Room::Manifests => reserve,
    }
}

/// Logs what could not be synced, and ends the process at once.
pub fn sync_failed(what: &str, error: &io::Error) -> ! {
    tracing::error!(
        %what,
        %error,
        "a sync to disk failed: this process stops, since what it wrote may be lost; check the disk, then start it again"
    );
    stderr::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_refused_before_manifests_and_small_volumes_reserve_less() {
        assert_eq!(reserve(1 << 40), RESERVE);
        assert_eq!(reserve(1 << 30), (1 << 30) / 20);
        let reserve = reserve(1 << 40);
        assert!(needed(reserve, Room::Blobs) > needed(reserve, Room::Manifests));
        check_room(Path::new("/"), Room::Manifests).unwrap();
        assert!(check_room_for(Path::new("/"), Room::Manifests, u64::MAX).is_err());
        assert!(check_room(Path::new("/no/such/place"), Room::Blobs).is_err());
    }
}
