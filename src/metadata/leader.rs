//! What a node does while it leads, besides taking proposals: it says how far to apply, asks how far
//! others have, keeps log time going, and hands over before it goes (A9, A25).
//!
//! What must stay true: what was answered belongs to one leadership, that is to one term in one
//! process, and one `Leadership` exists for it; the answer is noted before its index is taken; the
//! index comes from a round of a quorum that begins after the question came, never from a lease.

use super::Metadata;
use super::answers::Answers;
use super::answers::Note;
use crate::proto::peer::v1 as peer;
use crate::proto::peer::v1::commit_index_response::Result as Answer;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::NodeId;
use openraft::RaftMetrics;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

/// How long the leader looks for a quorum before it leaves a question unanswered.
const QUORUM_WAIT: Duration = Duration::from_secs(2);

/// How long a node holds the leader's question for its applied index open.
const APPLIED_WAIT: Duration = Duration::from_secs(2);

pub(super) struct Leadership {
    pub(super) term: u64,
    pub(super) elected_at: Duration,
    answers: Mutex<Answers>,
    /// Moves when a node says that it has applied more.
    pub(super) news: watch::Sender<u64>,
}

impl Leadership {
    fn new(term: u64, elected_at: Duration) -> Leadership {
        let answers = Mutex::new(Answers::new(elected_at));
        Leadership {
            term,
            elected_at,
            answers,
            news: watch::Sender::new(0),
        }
    }

    pub(super) fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().expect("no panic while held")
    }

    pub(super) fn heard(&self, node: NodeId, applied: u64) {
        if self.answers().heard(node, applied) {
            self.news.send_modify(|n| *n += 1);
        }
    }
}

impl Metadata {
    /// The leadership of this node, while it leads. The metrics are read under the lock, so that
    /// terms are seen in order and one term has one `Leadership`.
    pub(super) fn leading(&self) -> Option<Arc<Leadership>> {
        let mut current = self.inner.leadership.lock().expect("no panic while held");
        let term = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.state.is_leader().then_some(metrics.current_term)
        }?;
        if let Some(leadership) = current.as_ref().filter(|l| l.term == term) {
            return Some(leadership.clone());
        }
        let leadership = Arc::new(Leadership::new(term, self.inner.clock.now()));
        *current = Some(leadership.clone());
        Some(leadership)
    }

    // ---- questions ------------------------------------------------------------------------

    pub async fn serve_commit_index(
        &self,
        from: NodeId,
        request: peer::CommitIndexRequest,
    ) -> peer::CommitIndexResponse {
        let result = Some(self.answer(from, request).await);
        peer::CommitIndexResponse { result }
    }

    async fn answer(&self, from: NodeId, request: peer::CommitIndexRequest) -> Answer {
        let Some(leadership) = self.leading() else {
            return Answer::NotLeader(pointer(self.other_leader()));
        };
        if !self.is_member(from) {
            return Answer::NotLeader(pointer(None));
        }
        leadership.heard(from, request.applied);
        let note = match request.lease {
            true => match leadership.answers().open(from, self.inner.clock.now()) {
                Some(note) => Some(note),
                None => return Answer::Behind(pb::Blank {}),
            },
            false => None,
        };
        let index = self.quorum_index(leadership.term).await;
        settle(&leadership, from, note, index);
        match index {
            Some(index) => Answer::Index(index),
            None => Answer::NotLeader(pointer(self.other_leader())),
        }
    }

    /// The index is not below this leadership's own first entry, so whoever has applied it knows
    /// that an entry of this term is committed.
    async fn quorum_index(&self, term: u64) -> Option<u64> {
        let read = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        let linearizer = tokio::time::timeout(QUORUM_WAIT, read).await.ok()?.ok()?;
        let at = linearizer.read_log_id();
        (at.committed_leader_id().term == term).then(|| at.index())
    }

    pub async fn serve_applied(&self, request: peer::AppliedRequest) -> peer::AppliedResponse {
        let deadline = tokio::time::Instant::now() + APPLIED_WAIT;
        self.wait_applied(request.above.saturating_add(1), deadline)
            .await;
        peer::AppliedResponse {
            applied: *self.applied().borrow(),
        }
    }

    // ---- loops ----------------------------------------------------------------------------

    /// While this node leads, asks each other member how far it has applied.
    pub(super) async fn watch_members(self) {
        let mut updates = self.raft.metrics();
        let mut term = 0;
        let mut asked: BTreeMap<NodeId, DropGuard> = BTreeMap::new();
        loop {
            match self.leading() {
                Some(leadership) => {
                    if leadership.term != term {
                        asked.clear();
                        term = leadership.term;
                    }
                    let members = self.members();
                    asked.retain(|node, _| members.contains(node));
                    for node in members.into_iter().filter(|node| *node != self.id()) {
                        asked
                            .entry(node)
                            .or_insert_with(|| self.ask_applied(&leadership, node));
                    }
                }
                None => asked.clear(),
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                changed = updates.changed() => if changed.is_err() { return },
            }
        }
    }

    fn ask_applied(&self, leadership: &Arc<Leadership>, node: NodeId) -> DropGuard {
        let stop = self.inner.stop.child_token();
        let guard = stop.clone().drop_guard();
        let me = self.clone();
        let leadership = leadership.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = me.keep_asking_applied(&leadership, node) => {}
            }
        });
        guard
    }

    async fn keep_asking_applied(&self, leadership: &Leadership, node: NodeId) {
        const FIRST_PAUSE: Duration = Duration::from_millis(100);
        let mut pause = FIRST_PAUSE;
        loop {
            let above = leadership.answers().applied(node);
            let request = peer::AppliedRequest { above };
            match self
                .inner
                .peers
                .applied(node, request, APPLIED_WAIT * 3)
                .await
            {
                Ok(response) => {
                    leadership.heard(node, response.applied);
                    pause = FIRST_PAUSE;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// Log time: the leader says how long it has led, by its own clock.
    pub(super) async fn keep_log_time(self, every: Duration) {
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let Some(leadership) = self.leading() else {
                continue;
            };
            let elapsed = self.inner.clock.now().saturating_sub(leadership.elected_at);
            let tick = pb::Tick {
                term: leadership.term,
                elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                acknowledged: self.acknowledged(),
            };
            let command = pb::Command {
                version: super::write::VERSION,
                body: Some(Body::Tick(tick)),
                ..pb::Command::default()
            };
            // A tick that is lost is made good by the next one.
            let _ = tokio::time::timeout(every, self.append(command)).await;
        }
    }

    pub(super) fn other_leader(&self) -> Option<NodeId> {
        self.leader().filter(|leader| *leader != self.id())
    }

    /// Hands leadership to the most caught-up voter that answers; waits 2 s for it to lead.
    pub(super) async fn hand_over(&self) {
        let Some(to) = self.leading().and_then(|_| self.successor()) else {
            return;
        };
        tracing::info!(%to, "handing leadership over");
        if self.raft.trigger().transfer_leader(to.0).await.is_err() {
            return;
        }
        let me = self.id().0;
        let taken = |metrics: &RaftMetrics<_>| metrics.current_leader.is_some_and(|id| id != me);
        let wait = self.raft.wait(Some(Duration::from_secs(2)));
        if wait.metrics(taken, "another leader").await.is_err() {
            tracing::warn!(%to, "it has not taken the lead yet; an election will follow");
        }
    }
}

fn settle(leadership: &Leadership, node: NodeId, note: Option<Note>, index: Option<u64>) {
    match (note, index) {
        (Some(note), Some(index)) => leadership.answers().close(node, note, index),
        (Some(note), None) => leadership.answers().cancel(node, note),
        (None, _) => {}
    }
}

pub(super) fn pointer(leader: Option<NodeId>) -> peer::NotLeader {
    peer::NotLeader {
        leader: leader.map_or(0, |leader| leader.0),
    }
}
