//! How many copies of one blob are wanted: the most that any repository asks for that links it.
//! What prefixes
//! ask for is counted with the blob; what the whole registry asks for is not, so that changing that
//! costs nothing.

use super::ALL;
use super::Effective;
use crate::proto::state::v1 as pb;

/// What prefixes ask for, and whether the whole registry's number counts besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// The most that a prefix asks for; 0: none does.
    by_prefix: u32,
    only_by_prefix: bool,
}

const ONLY_BY_PREFIX: u8 = 8;

impl Wanted {
    pub fn of(blob: &pb::BlobRecord) -> Wanted {
        let most = blob.wanted.iter().map(|wanted| wanted.copies).max();
        Wanted {
            by_prefix: most.unwrap_or(0),
            only_by_prefix: blob.only_by_prefix,
        }
    }

    /// `by_default`: what the whole registry asks for.
    pub fn copies(self, by_default: u32) -> u32 {
        match self.by_prefix {
            0 => by_default,
            by_prefix if self.only_by_prefix => by_prefix,
            by_prefix => by_prefix.max(by_default),
        }
    }

    /// 0 where no prefix asks for anything.
    pub fn to_byte(self) -> u8 {
        let most = u8::try_from(self.by_prefix).unwrap_or(7).min(7);
        match most {
            0 => 0,
            most if self.only_by_prefix => most | ONLY_BY_PREFIX,
            most => most,
        }
    }

    pub fn from_byte(byte: u8) -> Wanted {
        Wanted {
            by_prefix: u32::from(byte & 7),
            only_by_prefix: byte & ONLY_BY_PREFIX != 0,
        }
    }
}

impl Effective {
    /// What a repository adds to the blobs that it links: 0 when the whole registry's number, or
    /// the cluster's, is what counts there.
    pub fn copies_by_prefix(&self) -> u32 {
        match self.copies.from.as_deref() {
            None | Some(ALL) => 0,
            Some(_) => self.copies.value,
        }
    }
}

/// One repository's link changes what it asks for; None: there was, or is, no link.
pub fn count(blob: &mut pb::BlobRecord, before: Option<u32>, now: Option<u32>) {
    if let Some(before) = before.filter(|before| *before > 0)
        && let Ok(at) = blob.wanted.binary_search_by_key(&before, |w| w.copies)
    {
        match blob.wanted[at].links {
            0 | 1 => drop(blob.wanted.remove(at)),
            n => blob.wanted[at].links = n - 1,
        }
    }
    match now {
        None => {}
        Some(0) => blob.only_by_prefix = false,
        Some(copies) => match blob.wanted.binary_search_by_key(&copies, |w| w.copies) {
            Ok(at) => blob.wanted[at].links += 1,
            Err(at) => blob
                .wanted
                .insert(at, pb::WantedCopies { copies, links: 1 }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_that_asks_for_most_is_heard() {
        let mut blob = pb::BlobRecord {
            only_by_prefix: true,
            ..Default::default()
        };
        count(&mut blob, None, Some(1));
        assert_eq!(
            Wanted::of(&blob).copies(3),
            1,
            "only where one copy is enough"
        );
        count(&mut blob, None, Some(5));
        count(&mut blob, None, Some(5));
        assert_eq!(Wanted::of(&blob).copies(3), 5);
        count(&mut blob, Some(5), None);
        assert_eq!(Wanted::of(&blob).copies(3), 5);
        count(&mut blob, Some(5), Some(2));
        assert_eq!(Wanted::of(&blob).copies(3), 2);
        count(&mut blob, None, Some(0));
        assert_eq!(
            Wanted::of(&blob).copies(3),
            3,
            "the whole registry's number counts too"
        );
        count(&mut blob, Some(1), None);
        count(&mut blob, Some(2), None);
        assert!(blob.wanted.is_empty());
        assert_eq!(Wanted::of(&blob).copies(4), 4);
    }

    #[test]
    fn every_want_fits_in_its_byte() {
        for by_prefix in 0..=7 {
            for only_by_prefix in [false, true] {
                let wanted = Wanted {
                    by_prefix,
                    only_by_prefix,
                };
                let again = Wanted::from_byte(wanted.to_byte());
                assert_eq!(again.copies(3), wanted.copies(3));
                assert_eq!(again.to_byte(), wanted.to_byte());
            }
        }
        assert_eq!(Wanted::default().to_byte(), 0);
    }
}
