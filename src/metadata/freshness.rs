//! Is this node fresh (A9, the asker's side)? Pure: every time is an argument.
//!
//! What must stay true: freshness counts from *sending* the question, and only once the index of its
//! answer is applied here. A read takes the deadline before it opens its view, and is unmarked only
//! if the clock is still before that same deadline when it is done. The clock counts suspend.

use std::time::Duration;

/// How long an applied answer makes this node fresh. The leader waits 2.5 s (`answers::WAIT`).
const FRESH: Duration = Duration::from_secs(2);

/// After a failed question, reads are answered marked for so long instead of asking again.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Freshness {
    /// Zero: not fresh.
    deadline: Duration,
    /// The last time at which this node surely had every acknowledged write; the start, before that.
    confirmed_at: Duration,
    /// When the leader last answered at all.
    answered_at: Option<Duration>,
    failed_at: Option<Duration>,
}

impl Freshness {
    pub fn new(started_at: Duration) -> Freshness {
        Freshness {
            deadline: Duration::ZERO,
            confirmed_at: started_at,
            answered_at: None,
            failed_at: None,
        }
    }

    /// Fresh before this time of the clock.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub fn is_fresh(&self, now: Duration) -> bool {
        now < self.deadline
    }

    /// The answer to a lease question sent then is applied.
    pub fn renewed(&mut self, sent_at: Duration) {
        self.deadline = self.deadline.max(sent_at + FRESH);
        self.confirmed(sent_at);
    }

    /// The answer to any question sent then is applied.
    pub fn confirmed(&mut self, sent_at: Duration) {
        self.confirmed_at = self.confirmed_at.max(sent_at);
    }

    pub fn answered(&mut self, now: Duration) {
        self.answered_at = Some(now);
        self.failed_at = None;
    }

    pub fn failed(&mut self, now: Duration) {
        self.failed_at = Some(now);
    }

    /// A snapshot was installed: not fresh until the next answer.
    pub fn forget(&mut self) {
        self.deadline = Duration::ZERO;
    }

    /// Is it worth a read's time to ask the leader?
    pub fn may_ask(&self, now: Duration) -> bool {
        self.failed_at
            .is_none_or(|failed_at| now >= failed_at + RETRY)
    }

    pub fn confirmed_at(&self) -> Duration {
        self.confirmed_at
    }

    /// The leader answered within `limit`, after a round of a quorum.
    pub fn answered_within(&self, limit: Duration, now: Duration) -> bool {
        self.answered_at.is_some_and(|at| now < at + limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn freshness_counts_from_sending_the_question() {
        let mut freshness = Freshness::new(ms(1_000));
        assert!(!freshness.is_fresh(ms(1_000)));
        freshness.renewed(ms(1_500));
        assert!(freshness.is_fresh(ms(3_499)));
        assert!(!freshness.is_fresh(ms(3_500)));
    }

    #[test]
    fn an_older_answer_takes_nothing_away() {
        let mut freshness = Freshness::new(ms(0));
        freshness.renewed(ms(1_500));
        freshness.renewed(ms(1_000));
        assert_eq!(freshness.deadline(), ms(3_500));
        assert_eq!(freshness.confirmed_at(), ms(1_500));
    }

    #[test]
    fn a_question_for_one_read_gives_no_freshness() {
        let mut freshness = Freshness::new(ms(0));
        freshness.confirmed(ms(1_500));
        assert!(!freshness.is_fresh(ms(1_501)));
        assert_eq!(freshness.confirmed_at(), ms(1_500));
    }

    #[test]
    fn an_installed_snapshot_ends_freshness_but_not_the_age() {
        let mut freshness = Freshness::new(ms(0));
        freshness.renewed(ms(1_500));
        freshness.forget();
        assert!(!freshness.is_fresh(ms(1_501)));
        assert_eq!(freshness.confirmed_at(), ms(1_500));
    }

    #[test]
    fn reads_do_not_ask_a_leader_that_just_failed_to_answer() {
        let mut freshness = Freshness::new(ms(0));
        assert!(freshness.may_ask(ms(1)));
        freshness.failed(ms(1_000));
        assert!(!freshness.may_ask(ms(1_499)));
        assert!(freshness.may_ask(ms(1_500)));
        freshness.answered(ms(1_200));
        assert!(freshness.may_ask(ms(1_201)));
    }
}
