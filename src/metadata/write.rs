//! Writing: one request id from the first proposal to the last retry, at whoever leads, until the
//! budget ends (A10, P5).
//!
//! What must stay true: the id is allocated once and the command says at each attempt what is
//! settled and what was given up; nothing is proposed before this start's Boot is applied; an
//! unclear attempt is made again only because the state machine applies an id once.

use super::Error;
use super::Metadata;
use super::propose::Proposed;
use crate::budget::Budget;
use crate::peers::PeerError;
use crate::policy::Key;
use crate::proto::peer::v1 as peer;
use crate::proto::peer::v1::propose_response::Result as Proposal;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::NodeId;
use prost::Message;
use std::time::Duration;

/// The version of commands that every release reads alike.
pub(super) const VERSION: u32 = 1;
/// Of pushes that name absent blobs or link later ones, which the first release would misread.
const VERSION_WITH_ABSENT: u32 = 2;
/// Of pushes that name manifests: it is noted for each that the index names it.
const VERSION_WITH_CHILDREN: u32 = 3;
/// Of pushes that may not do everything with tags, and of policies that say who may pull.
const VERSION_WITH_RIGHTS: u32 = 4;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The lowest that says what is meant: a node of the release before stops only at what it would
/// apply otherwise than this one.
fn version(body: &Body) -> u32 {
    let is_about_visibility = |key: &String| key == Key::Visibility.as_str();
    match body {
        Body::PutManifest(put) if put.may_not_create || put.may_not_overwrite => {
            VERSION_WITH_RIGHTS
        }
        Body::SetPolicy(set) if set.set.as_ref().is_some_and(|set| set.public.is_some()) => {
            VERSION_WITH_RIGHTS
        }
        Body::UnsetPolicy(unset) if unset.keys.iter().any(is_about_visibility) => {
            VERSION_WITH_RIGHTS
        }
        Body::PutManifest(put) if !put.children.is_empty() => VERSION_WITH_CHILDREN,
        Body::PutManifest(put) if !put.absent.is_empty() || put.again => VERSION_WITH_ABSENT,
        _ => VERSION,
    }
}

/// One attempt at another node takes no longer than this and what its bytes need.
const ATTEMPT: Duration = Duration::from_secs(6);
const SLOWEST_BYTES_PER_SECOND: usize = 128 * 1024;

/// How long the giving up of a write is proposed; later commands carry it too.
const GIVE_UP: Duration = Duration::from_secs(30);

/// A request id that is waited for; given up when dropped without an outcome.
pub(super) struct Ticket {
    metadata: Metadata,
    seq: u64,
    /// A proposal may have left this node.
    sent: bool,
    decided: bool,
}

impl Ticket {
    pub(super) fn new(metadata: &Metadata) -> Ticket {
        let seq = metadata.in_flight().begin();
        Ticket {
            metadata: metadata.clone(),
            seq,
            sent: false,
            decided: false,
        }
    }

    fn command(&self, body: Body) -> pb::Command {
        let identity = &self.metadata.inner.identity;
        let request = pb::RequestId {
            node: identity.node().0,
            boot: identity.boot(),
            seq: self.seq,
        };
        let version = version(&body);
        let in_flight = self.metadata.in_flight();
        pb::Command {
            version,
            request: Some(request),
            settled: in_flight.settled(),
            given_up: in_flight.given_up(),
            body: Some(body),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.decided || !self.sent {
            self.metadata.in_flight().finish(self.seq);
        } else {
            self.metadata.in_flight().give_up(self.seq);
        }
    }
}

/// What one attempt came to.
enum Attempt {
    Decided(pb::Outcome),
    /// It surely was not proposed; why.
    NotProposed(String),
    /// It may have been.
    Unclear(String),
}

impl Metadata {
    fn in_flight(&self) -> std::sync::MutexGuard<'_, super::in_flight::InFlight> {
        self.inner.in_flight.lock().expect("no panic while held")
    }

    /// Proposes, at the leader wherever it is, retrying under one request id across elections,
    /// until the budget ends. The outcome is applied here and, by A9, no fresh node can miss it
    /// when this returns. A caller that goes away ends nothing.
    pub async fn write(&self, body: Body, budget: Budget) -> Result<pb::Outcome, Error> {
        let me = self.clone();
        let write = async move { me.write_to_the_end(body, budget).await };
        self.inner.tasks.to_the_end(write).await
    }

    async fn write_to_the_end(&self, body: Body, budget: Budget) -> Result<pb::Outcome, Error> {
        if matches!(body, Body::PutManifest(_)) {
            self.check_room()?;
        }
        self.wait_for_boot(budget).await?;
        let mut ticket = Ticket::new(self);
        let written = self.propose(&mut ticket, body, budget).await;
        drop(ticket);
        if matches!(written, Err(Error::OutcomeUnknown)) {
            self.propose_giving_up();
        }
        written
    }

    async fn wait_for_boot(&self, budget: Budget) -> Result<(), Error> {
        let mut boot = self.boot_applied();
        if *boot.borrow() {
            return Ok(());
        }
        let _held = self.inner.metrics.hold();
        tokio::select! {
            () = self.inner.stop.cancelled() => Err(Error::Stopping),
            applied = tokio::time::timeout_at(budget.deadline(), boot.wait_for(|b| *b)) => match applied {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(Error::Stopping),
                Err(_) => Err(Error::Unavailable("this node has not announced its start yet".to_owned())),
            }
        }
    }

    /// Repeats attempts until one is decided, and waits until the outcome is applied here.
    pub(super) async fn propose(
        &self,
        ticket: &mut Ticket,
        body: Body,
        budget: Budget,
    ) -> Result<pb::Outcome, Error> {
        let mut leader = self.leader_changes();
        let mut pause = FIRST_PAUSE;
        let mut held = None;
        let outcome = loop {
            leader.mark_unchanged();
            let before = ticket.sent;
            // Noted first: should this future be dropped, the proposal may be on its way.
            ticket.sent = true;
            let why = match self.attempt(ticket.command(body.clone()), budget).await {
                Attempt::Decided(outcome) => break outcome,
                Attempt::NotProposed(why) => {
                    ticket.sent = before;
                    why
                }
                Attempt::Unclear(why) => why,
            };
            if budget.is_spent() {
                tracing::debug!(%why, "gave a write up");
                return Err(if ticket.sent {
                    Error::OutcomeUnknown
                } else {
                    Error::Unavailable(why)
                });
            }
            held.get_or_insert_with(|| self.inner.metrics.hold());
            tokio::select! {
                () = self.inner.stop.cancelled() => return Err(Error::Stopping),
                () = tokio::time::sleep(pause.min(budget.remaining())) => {}
                _ = leader.changed() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        ticket.decided = true;
        match self.wait_applied(outcome.index, budget.deadline()).await {
            true => Ok(outcome),
            false => Err(Error::OutcomeUnknown),
        }
    }

    async fn attempt(&self, command: pb::Command, budget: Budget) -> Attempt {
        match self.leader() {
            None => Attempt::NotProposed("no leader is known".to_owned()),
            Some(leader) if leader == self.id() => self.attempt_here(command, budget).await,
            Some(leader) => self.attempt_at(leader, command, budget).await,
        }
    }

    async fn attempt_here(&self, command: pb::Command, budget: Budget) -> Attempt {
        match tokio::time::timeout_at(budget.deadline(), self.propose_here(command)).await {
            Ok(Proposed::Decided(outcome)) => Attempt::Decided(outcome),
            Ok(Proposed::NotLeader(_)) => {
                Attempt::NotProposed("this node no longer leads".to_owned())
            }
            Ok(Proposed::Unknown) => Attempt::Unclear("the leader changed".to_owned()),
            Err(_) => Attempt::Unclear("no quorum answered".to_owned()),
        }
    }

    async fn attempt_at(&self, leader: NodeId, command: pb::Command, budget: Budget) -> Attempt {
        let bytes = u64::try_from(command.encoded_len() / SLOWEST_BYTES_PER_SECOND).unwrap_or(0);
        let limit = budget.remaining().min(ATTEMPT + Duration::from_secs(bytes));
        let deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = peer::ProposeRequest {
            command: Some(command),
            deadline_ms,
        };
        let mut changes = self.leader_changes();
        let response = tokio::select! {
            response = self.inner.peers.propose(leader, request, limit) => response,
            _ = changes.wait_for(|now| now.node.is_some_and(|node| node != leader)) => {
                return Attempt::Unclear("the leader changed".to_owned());
            }
        };
        match response {
            Ok(peer::ProposeResponse {
                result: Some(Proposal::Outcome(outcome)),
            }) => Attempt::Decided(outcome),
            Ok(peer::ProposeResponse {
                result: Some(Proposal::NotLeader(_)),
            }) => Attempt::NotProposed(format!("{leader} does not lead, or has no quorum")),
            Ok(peer::ProposeResponse { result: None }) => {
                Attempt::Unclear(format!("{leader} does not know what became of it"))
            }
            Err(error @ PeerError::Unclear(..)) => Attempt::Unclear(error.to_string()),
            Err(error) => Attempt::NotProposed(error.to_string()),
        }
    }

    /// Makes the giving up known, so that the write cannot take effect much later: in a task of the
    /// node, one at a time, since each command names all that was given up.
    fn propose_giving_up(&self) {
        let mut running = self.inner.giving_up.lock().expect("no panic while held");
        if std::mem::replace(&mut *running, true) {
            return;
        }
        let me = self.clone();
        self.inner.tasks.spawn(async move {
            let body = Body::GiveUp(pb::GiveUp {});
            let mut ticket = Ticket::new(&me);
            // If this fails too, the next command carries it.
            let _ = me.propose(&mut ticket, body, Budget::new(GIVE_UP)).await;
            *me.inner.giving_up.lock().expect("no panic while held") = false;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_release_before_would_misread_is_kept_from_it() {
        let plain = pb::PutManifest::default();
        let sparse = pb::PutManifest {
            absent: vec!["sha256:…".to_owned()],
            ..plain.clone()
        };
        let again = pb::PutManifest {
            again: true,
            ..plain.clone()
        };
        let index = pb::PutManifest {
            children: vec!["sha256:…".to_owned()],
            ..sparse.clone()
        };
        assert_eq!(version(&Body::PutManifest(plain)), VERSION);
        assert_eq!(version(&Body::PutManifest(index)), VERSION_WITH_CHILDREN);
        for put in [sparse, again] {
            assert_eq!(version(&Body::PutManifest(put)), VERSION_WITH_ABSENT);
        }
        assert_eq!(version(&Body::Probe(pb::Probe {})), VERSION);
    }
}
