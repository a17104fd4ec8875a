//! How long one request may still be held. One budget covers everything that a request waits
//! for (design: P5), so waits never add up to more than the client's patience.

use std::time::Duration;
use tokio::time::Instant;

/// What a client's write or confirmed read may wait for, in all: under the 60 s after which load
/// balancers usually give up.
pub const WRITE_HOLD: Duration = Duration::from_secs(30);

/// A deadline that is passed down instead of a timeout, so that each step takes what is left.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    deadline: Instant,
}

impl Budget {
    pub fn new(total: Duration) -> Budget {
        Budget {
            deadline: Instant::now() + total,
        }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Zero when spent.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub fn is_spent(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The same budget, or `at_most` from now, whichever ends first.
    pub fn capped(&self, at_most: Duration) -> Budget {
        Budget {
            deadline: self.deadline.min(Instant::now() + at_most),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(WRITE_HOLD)
    }
}
