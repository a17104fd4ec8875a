//! Tokens whose signature was right, so that it is not checked at each request of a client. What its
//! account may do now is looked up all the same, and whether the key that signed it is known still.

use crate::access::Principal;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;

const MOST: usize = 2000;

#[derive(Clone)]
pub struct Known {
    pub principal: Arc<Principal>,
    /// Of the key that signed it.
    pub kid: String,
    /// Since 1970.
    pub expires_s: u64,
}

/// By the hash of the token.
#[derive(Default)]
pub struct Verified(Mutex<HashMap<Vec<u8>, Known>>);

impl Verified {
    pub fn get(&self, hash: &[u8], now_s: u64) -> Option<Known> {
        let known = self.0.lock().expect("no panic while held");
        known
            .get(hash)
            .filter(|known| known.expires_s > now_s)
            .cloned()
    }

    pub fn put(&self, hash: Vec<u8>, new: Known, now_s: u64) {
        let mut known = self.0.lock().expect("no panic while held");
        if known.len() >= MOST {
            known.retain(|_, known| known.expires_s > now_s);
        }
        if known.len() < MOST {
            known.insert(hash, new);
        }
    }
}
