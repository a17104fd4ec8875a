//! Receipts given: which files must stay until which log time (G3).

use crate::oci::Digest;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Log time that a receipt is good for.
const TTL_MS: u64 = 15 * 60 * 1000;
/// Seconds, for tests.
const TEST_TTL: &str = "ROADSTEAD_TEST__RECEIPT_TTL";

#[derive(Clone)]
pub struct Pins {
    ttl_ms: u64,
    until: Arc<Mutex<HashMap<Digest, u64>>>,
}

impl Default for Pins {
    fn default() -> Self {
        let test = std::env::var(TEST_TTL)
            .ok()
            .and_then(|text| text.parse::<u64>().ok());
        Pins {
            ttl_ms: test.map_or(TTL_MS, |seconds| seconds * 1000),
            until: Arc::default(),
        }
    }
}

impl Pins {
    pub fn ttl_ms(&self) -> u64 {
        self.ttl_ms
    }

    /// Never shortens a pin.
    pub fn pin(&self, digest: &Digest, until_ms: u64) {
        let mut pins = self.until.lock().expect("no panic while held");
        let pin = pins.entry(digest.clone()).or_default();
        *pin = until_ms.max(*pin);
    }

    pub fn pinned_until_ms(&self, digest: &Digest) -> Option<u64> {
        self.until
            .lock()
            .expect("no panic while held")
            .get(digest)
            .copied()
    }

    /// Forgets what has passed.
    pub fn expire(&self, log_time_ms: u64) {
        self.until
            .lock()
            .expect("no panic while held")
            .retain(|_, until| *until >= log_time_ms);
    }
}
