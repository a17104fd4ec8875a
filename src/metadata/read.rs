//! Reading, and the questions to the leader that make reads sure (A9, the asker's side).
//!
//! What must stay true: a read takes the freshness deadline before it opens its view of the state;
//! a question is shared only by reads that began before it was sent; an answer counts only once its
//! index is applied here.

use super::Error;
use super::Metadata;
use super::Read;
use super::View;
use crate::budget::Budget;
use crate::proto::peer::v1 as peer;
use crate::proto::peer::v1::commit_index_response::Result as Answer;
use crate::telemetry::QuestionKind;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How often a node asks for freshness, and how long such a question may take: an answer that comes
/// later could hardly be applied before the freshness that it gives has ended.
const LEASE_EVERY: Duration = Duration::from_millis(500);
const LEASE_LIMIT: Duration = Duration::from_millis(1500);

/// How long a held read waits for one answer before it asks again.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);

/// Questions for single reads that may be on their way at once; reads in between share one.
const QUESTIONS_UNDER_WAY: usize = 4;

/// Reads that may wait for a question; those above are answered marked.
pub(super) const QUESTIONS_WAITING: usize = 4096;

/// A read that wants the leader asked.
pub(super) struct Question {
    kind: &'static str,
    limit: Duration,
    reply: oneshot::Sender<Option<Confirmed>>,
}

/// Whoever has applied `index` has every write acknowledged before `sent_at`.
#[derive(Clone, Copy)]
struct Confirmed {
    index: u64,
    sent_at: Duration,
}

impl Metadata {
    /// Runs `f` on local state. Unmarked at no cost while this node is fresh; else asks the leader
    /// for this one read; without a leader, marked with its age (never refused). `f` may run twice.
    pub async fn read<T>(&self, f: impl Fn(&View) -> io::Result<T>) -> Result<Read<T>, Error> {
        let clock = self.inner.clock;
        let deadline = self.freshness().deadline();
        if clock.now() < deadline {
            let (value, applied_index) = self.look(&f)?;
            if clock.now() < deadline {
                return Ok(Read {
                    value,
                    staleness: None,
                    applied_index,
                });
            }
        }
        if self.is_worth_asking() && self.confirm_once("read", self.read_limit()).await {
            let (value, applied_index) = self.look(&f)?;
            return Ok(Read {
                value,
                staleness: None,
                applied_index,
            });
        }
        let confirmed_at = self.freshness().confirmed_at();
        let (value, applied_index) = self.look(&f)?;
        self.inner.metrics.marked_reads.inc();
        let staleness = Some(clock.now().saturating_sub(confirmed_at));
        Ok(Read {
            value,
            staleness,
            applied_index,
        })
    }

    /// Runs `f` on state that the leader has just confirmed, held within the budget, else
    /// Unavailable: for misses, which are never trusted locally.
    pub async fn confirm<T>(
        &self,
        budget: Budget,
        f: impl Fn(&View) -> io::Result<T>,
    ) -> Result<T, Error> {
        let mut leader = self.leader_changes();
        let mut pause = Duration::from_millis(50);
        let mut held = None;
        loop {
            leader.mark_unchanged();
            let limit = budget.remaining().min(CONFIRM_LIMIT);
            if self.leader().is_some() && self.confirm_once("miss", limit).await {
                return Ok(self.look(&f)?.0);
            }
            if budget.is_spent() {
                let why = "this read needs the leader to confirm it".to_owned();
                return Err(Error::Unavailable(why));
            }
            held.get_or_insert_with(|| self.inner.metrics.hold());
            tokio::select! {
                () = self.inner.stop.cancelled() => return Err(Error::Stopping),
                () = tokio::time::sleep(pause.min(budget.remaining())) => {}
                _ = leader.changed() => {}
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Has a leader, with a quorum behind it, answered lately? Looks for one and asks it, if not.
    pub async fn hear_leader(&self, within: Duration) -> bool {
        let limit = Budget::new(within);
        let mut leader = self.leader_changes();
        let known = async { leader.wait_for(|l| l.node.is_some()).await.is_ok() };
        let known = tokio::time::timeout_at(limit.deadline(), known).await;
        known == Ok(true)
            && (self.status().writable || self.confirm_once("status", limit.remaining()).await)
    }

    /// The view is opened here, after the caller took its deadline or its confirmation. The index
    /// is read first: what `f` sees is that or later.
    fn look<T>(&self, f: impl Fn(&View) -> io::Result<T>) -> io::Result<(T, u64)> {
        let applied_index = *self.applied().borrow();
        f(&self.view()).map(|value| (value, applied_index))
    }

    fn is_worth_asking(&self) -> bool {
        self.leader().is_some() && self.freshness().may_ask(self.inner.clock.now())
    }

    fn read_limit(&self) -> Duration {
        let leader = self.leader().filter(|leader| *leader != self.id());
        let round_trip = leader.and_then(|leader| self.inner.peers.round_trip(leader));
        let likely = round_trip.unwrap_or(Duration::from_millis(100)) * 4;
        (likely + Duration::from_millis(200)).min(Duration::from_secs(1))
    }

    /// One question, sent from now on; true when everything acknowledged before is applied here.
    async fn confirm_once(&self, kind: &'static str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (reply, answer) = oneshot::channel();
        if self
            .inner
            .questions
            .try_send(Question { kind, limit, reply })
            .is_err()
        {
            return false;
        }
        let Ok(Ok(Some(confirmed))) = tokio::time::timeout_at(deadline, answer).await else {
            return false;
        };
        if !self.wait_applied(confirmed.index, deadline).await {
            return false;
        }
        self.freshness().confirmed(confirmed.sent_at);
        true
    }

    /// Sends one question for all reads that wait when it is sent.
    pub(super) async fn send_questions(self, mut questions: mpsc::Receiver<Question>) {
        let under_way = Arc::new(Semaphore::new(QUESTIONS_UNDER_WAY));
        loop {
            let Some(first) = (tokio::select! {
                () = self.inner.stop.cancelled() => return,
                first = questions.recv() => first,
            }) else {
                return;
            };
            let Ok(place) = under_way.clone().acquire_owned().await else {
                return;
            };
            let mut askers = vec![first];
            while let Ok(question) = questions.try_recv() {
                askers.push(question);
            }
            let me = self.clone();
            self.inner.tasks.spawn(async move {
                let limit = askers
                    .iter()
                    .map(|q| q.limit)
                    .max()
                    .unwrap_or(CONFIRM_LIMIT);
                let confirmed = me.ask(askers[0].kind, false, limit).await;
                drop(place);
                for asker in askers {
                    // An asker that no longer waits is fine.
                    let _ = asker.reply.send(confirmed);
                }
            });
        }
    }

    /// Keeps this node fresh while there is a leader.
    pub(super) async fn keep_fresh(self) {
        let mut leader = self.leader_changes();
        loop {
            let started = Instant::now();
            leader.mark_unchanged();
            if self.leader().is_some() {
                let confirmed = self.ask("lease", true, LEASE_LIMIT).await;
                if let Some(Confirmed { index, sent_at }) = confirmed
                    && self.wait_applied(index, started + LEASE_LIMIT).await
                {
                    self.freshness().renewed(sent_at);
                }
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep_until(started + LEASE_EVERY) => {}
                _ = leader.changed() => {}
            }
        }
    }

    async fn ask(&self, kind: &'static str, lease: bool, limit: Duration) -> Option<Confirmed> {
        let leader = self.leader()?;
        let label = QuestionKind {
            kind: kind.to_owned(),
        };
        self.inner
            .metrics
            .leader_questions
            .get_or_create(&label)
            .inc();
        let request = peer::CommitIndexRequest {
            lease,
            applied: *self.applied().borrow(),
        };
        let sent_at = self.inner.clock.now();
        let response = if leader == self.id() {
            tokio::time::timeout(limit, self.serve_commit_index(leader, request))
                .await
                .ok()
        } else {
            self.inner
                .peers
                .commit_index(leader, request, limit)
                .await
                .ok()
        };
        let now = self.inner.clock.now();
        match response.and_then(|response| response.result) {
            Some(Answer::Index(index)) => {
                self.freshness().answered(now);
                Some(Confirmed { index, sent_at })
            }
            Some(Answer::Behind(_)) => None,
            Some(Answer::NotLeader(_)) | None => {
                self.freshness().failed(now);
                None
            }
        }
    }
}
