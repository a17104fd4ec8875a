//! The hash that nodes compare: a 256-bit sum of the SHA-256 of each pair, so that a change costs
//! what changed and not what is stored. It leaves out the applied record, in which two nodes at one
//! index may differ by nothing, and itself.

use super::super::keys;
use super::super::raft_types::invalid;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::io;

/// Little-endian limbs; sums wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateHash([u64; 4]);

impl StateHash {
    pub fn read(stored: Option<Bytes>) -> io::Result<StateHash> {
        let Some(bytes) = stored else {
            return Ok(StateHash::default());
        };
        if bytes.len() != 32 {
            return Err(invalid("a state hash of odd length"));
        }
        let mut limbs = [0; 4];
        for (limb, part) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
            *limb = u64::from_le_bytes(part.try_into().map_err(invalid)?);
        }
        Ok(StateHash(limbs))
    }

    pub fn as_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }

    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        if let Some(limbs) = pair(key, value) {
            let mut carry = false;
            for (sum, limb) in self.0.iter_mut().zip(limbs) {
                let (a, c1) = sum.overflowing_add(limb);
                let (b, c2) = a.overflowing_add(u64::from(carry));
                *sum = b;
                carry = c1 || c2;
            }
        }
    }

    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        if let Some(limbs) = pair(key, value) {
            let mut borrow = false;
            for (sum, limb) in self.0.iter_mut().zip(limbs) {
                let (a, c1) = sum.overflowing_sub(limb);
                let (b, c2) = a.overflowing_sub(u64::from(borrow));
                *sum = b;
                borrow = c1 || c2;
            }
        }
    }
}

fn pair(key: &[u8], value: &[u8]) -> Option<[u64; 4]> {
    if key == keys::APPLIED || key == keys::HASH {
        return None;
    }
    let mut hasher = Sha256::new();
    hasher.update((key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    let digest = hasher.finalize();
    let mut limbs = [0; 4];
    for (limb, part) in limbs.iter_mut().zip(digest.chunks_exact(8)) {
        *limb = part
            .iter()
            .rev()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    }
    Some(limbs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn order_does_not_matter_and_removing_undoes(pairs in proptest::collection::vec((any::<[u8; 3]>(), any::<[u8; 2]>()), 0..20)) {
            let (mut forward, mut backward) = (StateHash::default(), StateHash::default());
            pairs.iter().for_each(|(key, value)| forward.add(key, value));
            pairs.iter().rev().for_each(|(key, value)| backward.add(key, value));
            assert_eq!(forward, backward);
            assert_eq!(StateHash::read(Some(Bytes::copy_from_slice(&forward.as_bytes()))).unwrap(), forward);
            pairs.iter().for_each(|(key, value)| forward.remove(key, value));
            assert_eq!(forward, StateHash::default());
        }
    }
}
