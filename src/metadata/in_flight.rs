//! Which proposals of this boot still wait for their outcome, and which were given up (A10).
//!
//! Every command carries both: below `settled` the state may forget outcomes and refuses what comes
//! late; a given-up number without an outcome is recorded as abandoned, so that it can never take
//! effect after a later write. A number is settled only once nobody waits for it.

use std::collections::BTreeSet;

/// Pure bookkeeping; numbers rise from 1.
#[derive(Debug, Default)]
pub struct InFlight {
    last: u64,
    waiting: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
}

impl InFlight {
    /// A number for a new proposal, waited for from now on.
    pub fn begin(&mut self) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last);
        self.last
    }

    /// It has its outcome, or never left this node.
    pub fn finish(&mut self, seq: u64) {
        self.waiting.remove(&seq);
        self.prune();
    }

    /// Nobody waits for it any more, and it may be on its way.
    pub fn give_up(&mut self, seq: u64) {
        if self.waiting.remove(&seq) {
            self.given_up.insert(seq);
        }
        self.prune();
    }

    /// Every number below this one is no longer waited for.
    pub fn settled(&self) -> u64 {
        self.waiting.first().copied().unwrap_or(self.last + 1)
    }

    /// The given-up numbers that `settled` does not cover.
    pub fn given_up(&self) -> Vec<u64> {
        self.given_up.iter().copied().collect()
    }

    fn prune(&mut self) {
        self.given_up = self.given_up.split_off(&self.settled());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_is_the_lowest_number_still_waited_for() {
        let mut requests = InFlight::default();
        assert_eq!(requests.settled(), 1);
        let (a, b, c) = (requests.begin(), requests.begin(), requests.begin());
        assert_eq!((a, b, c), (1, 2, 3));
        requests.finish(b);
        assert_eq!(requests.settled(), 1);
        requests.finish(a);
        assert_eq!(requests.settled(), 3);
        requests.finish(c);
        assert_eq!(requests.settled(), 4);
    }

    #[test]
    fn a_given_up_number_is_named_until_settled_passes_it() {
        let mut requests = InFlight::default();
        let (a, b, c) = (requests.begin(), requests.begin(), requests.begin());
        requests.give_up(b);
        assert_eq!((requests.settled(), requests.given_up()), (a, vec![b]));
        requests.finish(a);
        assert_eq!((requests.settled(), requests.given_up()), (c, vec![]));
    }

    #[test]
    fn an_answered_number_cannot_be_given_up() {
        let mut requests = InFlight::default();
        let (a, b) = (requests.begin(), requests.begin());
        requests.finish(b);
        requests.give_up(b);
        assert_eq!((requests.settled(), requests.given_up()), (a, vec![]));
    }
}
