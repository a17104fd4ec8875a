//! The clock of every freshness decision: monotonic, and counting while the machine is suspended,
//! so that a node that slept never thinks that it is fresh (A9). Injected, so that a simulation
//! brings its own.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// `CLOCK_BOOTTIME`.
    System,
    /// tokio's clock, which a simulation drives.
    Simulated(tokio::time::Instant),
}

impl Clock {
    pub fn simulated() -> Clock {
        Clock::Simulated(tokio::time::Instant::now())
    }

    /// Time since an arbitrary start.
    pub fn now(&self) -> Duration {
        match self {
            Clock::System => {
                let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                Duration::new(
                    t.tv_sec.unsigned_abs(),
                    u32::try_from(t.tv_nsec).unwrap_or(0),
                )
            }
            Clock::Simulated(start) => start.elapsed(),
        }
    }
}

/// Milliseconds since 1970: what the expiry of credentials is compared with, and what is shown of when
/// things happened. Nothing else is decided by it.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
