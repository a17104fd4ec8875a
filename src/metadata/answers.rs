//! Whom a leader told how far to apply, and so which node may still be fresh without a given write
//! (A9, the leader's side). Pure: every time is an argument.
//!
//! What must stay true: an answer is noted before its index is taken, and counts as below every
//! write until the index is known; it is noted at a time not before the question was sent, so that
//! `WAIT` after it the asker is no longer fresh, at clock rates that differ by up to 11 %.
//! It belongs to one leadership: whoever was answered before the election counts as answered then.

use crate::topology::NodeId;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

/// A node is fresh for 2 s from sending its question; this is that, with room for clocks that run apart.
pub const WAIT: Duration = Duration::from_millis(2500);

#[derive(Debug)]
pub struct Answers {
    elected_at: Duration,
    nodes: BTreeMap<NodeId, Answered>,
    next: u64,
}

#[derive(Debug, Default)]
struct Answered {
    applied: u64,
    /// The highest write that this node let a wait run out for.
    missed: u64,
    recent: Vec<Answer>,
}

#[derive(Debug)]
struct Answer {
    note: Note,
    at: Duration,
    /// Zero while not known.
    index: u64,
}

/// Names one answer that is being given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note(u64);

impl Answers {
    pub fn new(elected_at: Duration) -> Answers {
        Answers {
            elected_at,
            nodes: BTreeMap::new(),
            next: 0,
        }
    }

    /// Notes that `node` is about to be answered. None: it let a wait run out, and gets no
    /// freshness before it has caught up, so that it slows later writes no more.
    pub fn open(&mut self, node: NodeId, now: Duration) -> Option<Note> {
        let answered = self.nodes.entry(node).or_default();
        if answered.applied < answered.missed {
            return None;
        }
        answered.recent.retain(|answer| now < answer.at + WAIT);
        self.next += 1;
        let note = Note(self.next);
        answered.recent.push(Answer {
            note,
            at: now,
            index: 0,
        });
        Some(note)
    }

    /// The index that `node` is answered with.
    pub fn close(&mut self, node: NodeId, note: Note, index: u64) {
        let recent = self
            .nodes
            .get_mut(&node)
            .map(|answered| &mut answered.recent);
        if let Some(answer) = recent.and_then(|all| all.iter_mut().find(|a| a.note == note)) {
            answer.index = index;
        }
    }

    /// The answer will never be given.
    pub fn cancel(&mut self, node: NodeId, note: Note) {
        if let Some(answered) = self.nodes.get_mut(&node) {
            answered.recent.retain(|answer| answer.note != note);
        }
    }

    /// `node` says how far it has applied; true when that is news.
    pub fn heard(&mut self, node: NodeId, applied: u64) -> bool {
        let known = &mut self.nodes.entry(node).or_default().applied;
        let news = applied > *known;
        *known = applied.max(*known);
        news
    }

    pub fn applied(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |answered| answered.applied)
    }

    /// Can no fresh node miss the write of `wait`? Else when to look again, unless news comes first.
    /// `members` and everyone answered lately are waited for. A node without an answer that counts
    /// is not fresh: nothing is held against it.
    pub fn visible(
        &mut self,
        wait: &mut Wait,
        members: &[NodeId],
        now: Duration,
    ) -> Result<(), Duration> {
        for member in members {
            self.nodes.entry(*member).or_default();
        }
        let mut look_again = None;
        for (node, answered) in &mut self.nodes {
            if answered.applied >= wait.index {
                continue;
            }
            let fresh_until = answered.fresh_without(wait.index, self.elected_at);
            if now < fresh_until {
                wait.waited_for.insert(*node);
                look_again = look_again.max(Some(fresh_until));
            } else if wait.waited_for.contains(node) {
                answered.missed = answered.missed.max(wait.index);
            }
        }
        look_again.map_or(Ok(()), Err)
    }
}

/// One write that waits to be visible.
#[derive(Debug)]
pub struct Wait {
    index: u64,
    waited_for: BTreeSet<NodeId>,
}

impl Wait {
    pub fn new(index: u64) -> Wait {
        Wait {
            index,
            waited_for: BTreeSet::new(),
        }
    }
}

impl Answered {
    /// Until when this node may be fresh without having applied `index`.
    fn fresh_without(&self, index: u64, elected_at: Duration) -> Duration {
        let below = self.recent.iter().filter(|answer| answer.index < index);
        below
            .map(|answer| answer.at)
            .fold(elected_at, Duration::max)
            + WAIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const BOTH: [NodeId; 2] = [A, B];

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A leadership old enough that its election no longer counts.
    fn settled() -> Answers {
        Answers::new(ms(0))
    }

    fn answer(answers: &mut Answers, node: NodeId, now: Duration, index: u64) {
        let note = answers.open(node, now).unwrap();
        answers.close(node, note, index);
    }

    #[test]
    fn a_write_is_visible_once_every_member_has_applied_it() {
        let mut answers = settled();
        answer(&mut answers, A, ms(9_900), 6);
        answer(&mut answers, B, ms(9_000), 6);
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(10_000)),
            Err(ms(12_400))
        );
        answers.heard(A, 7);
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(10_000)),
            Err(ms(11_500))
        );
        answers.heard(B, 8);
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(10_000)),
            Ok(())
        );
    }

    #[test]
    fn a_silent_node_is_waited_for_until_its_freshness_has_ended() {
        let mut answers = settled();
        answers.heard(A, 7);
        answer(&mut answers, B, ms(10_000), 6);
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(12_499)),
            Err(ms(12_500))
        );
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(12_500)),
            Ok(())
        );
    }

    #[test]
    fn only_answers_below_the_write_are_waited_for() {
        let mut answers = settled();
        answer(&mut answers, A, ms(10_000), 7);
        answer(&mut answers, A, ms(10_500), 9);
        assert_eq!(answers.visible(&mut Wait::new(7), &[A], ms(10_600)), Ok(()));
        assert_eq!(
            answers.visible(&mut Wait::new(8), &[A], ms(10_600)),
            Err(ms(12_500))
        );
    }

    #[test]
    fn an_answer_whose_index_is_not_known_yet_counts_as_below() {
        let mut answers = settled();
        let note = answers.open(A, ms(10_000)).unwrap();
        assert_eq!(
            answers.visible(&mut Wait::new(7), &[A], ms(10_000)),
            Err(ms(12_500))
        );
        answers.cancel(A, note);
        assert_eq!(answers.visible(&mut Wait::new(7), &[A], ms(10_000)), Ok(()));
    }

    #[test]
    fn a_new_leader_waits_from_its_election() {
        let mut answers = Answers::new(ms(10_000));
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(10_001)),
            Err(ms(12_500))
        );
        assert_eq!(
            answers.visible(&mut Wait::new(7), &BOTH, ms(12_500)),
            Ok(())
        );
    }

    #[test]
    fn a_node_that_let_a_wait_run_out_is_not_answered_until_it_caught_up() {
        let mut answers = settled();
        let mut wait = Wait::new(7);
        answer(&mut answers, A, ms(10_000), 6);
        assert_eq!(
            answers.visible(&mut wait, &[A], ms(10_001)),
            Err(ms(12_500))
        );
        assert_eq!(answers.visible(&mut wait, &[A], ms(12_500)), Ok(()));
        assert_eq!(answers.open(A, ms(12_501)), None);
        answers.heard(A, 6);
        assert_eq!(answers.open(A, ms(12_502)), None);
        answers.heard(A, 7);
        assert!(answers.open(A, ms(12_503)).is_some());
    }

    #[test]
    fn a_node_behind_that_nobody_waited_for_is_answered() {
        let mut answers = settled();
        for index in 7..20 {
            let mut wait = Wait::new(index);
            assert_eq!(answers.visible(&mut wait, &[A], ms(10_000)), Ok(()));
        }
        assert!(answers.open(A, ms(10_001)).is_some());
    }

    #[test]
    fn a_former_member_that_was_answered_lately_is_waited_for() {
        let mut answers = settled();
        answers.heard(A, 7);
        answer(&mut answers, B, ms(10_000), 6);
        assert_eq!(
            answers.visible(&mut Wait::new(7), &[A], ms(10_001)),
            Err(ms(12_500))
        );
    }
}
