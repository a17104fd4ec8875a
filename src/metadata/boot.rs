//! Announces this start of the node: its Boot, before which it proposes nothing, gives no receipt
//! and unlinks nothing (A5, A10). A higher boot of this id in the state means that a copy of this
//! machine runs elsewhere; then this process ends.

use super::Metadata;
use super::write::Ticket;
use crate::budget::Budget;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::stderr;
use std::time::Duration;

/// Long enough to be for ever: the announcement keeps one request id, however long a leader is away.
const UNTIL_ANNOUNCED: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often the state is searched for a later boot of this id.
const LOOK_FOR_CLONE: Duration = Duration::from_secs(5);

impl Metadata {
    pub(super) async fn announce_start(self) {
        let mut updates = self.applied();
        while !self.is_member(self.id()) {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                // A node that is added learns it from the log, though it may not have applied it.
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                _ = updates.changed() => {}
            }
        }
        while !self.is_announced() {
            let mut ticket = Ticket::new(&self);
            let body = Body::Boot(pb::Boot {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                last_log: self.inner.began_at,
            });
            let outcome = self
                .propose(&mut ticket, body, Budget::new(UNTIL_ANNOUNCED))
                .await;
            if let Ok(pb::Outcome {
                result: Some(pb::outcome::Result::Refused(refused)),
                ..
            }) = &outcome
                && refused.reason() == pb::Reason::LogLost
            {
                self.end_with_lost_log(&refused.message);
            }
            if self.is_announced() {
                break;
            }
            tracing::warn!(?outcome, "the start of this node was not accepted");
            if self.pause_or_stop(Duration::from_secs(1)).await {
                return;
            }
        }
        self.inner.boot_applied.send_replace(true);
        while let Err(error) = self.create_cluster().await {
            tracing::warn!(%error, "create the cluster");
            if self.pause_or_stop(Duration::from_secs(1)).await {
                return;
            }
        }
        while !self.pause_or_stop(LOOK_FOR_CLONE).await {
            self.is_announced();
        }
    }

    /// What this node acknowledged is gone: with its vote, a commit could be undone (A18).
    pub(super) fn end_with_lost_log(&self, what: &str) -> ! {
        tracing::error!(
            node = %self.id(),
            %what,
            "the metadata store of this node is damaged: it lost entries that it had acknowledged; the cluster has \
             all of it: move the data directory aside, remove this node from the cluster, and rejoin under a new id"
        );
        stderr::exit(1);
    }

    /// True when the node is stopping.
    async fn pause_or_stop(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.inner.stop.cancelled() => true,
            () = tokio::time::sleep(pause) => false,
        }
    }

    /// Does the state know this start? Ends the process when it knows a later one.
    fn is_announced(&self) -> bool {
        let identity = &self.inner.identity;
        let known = match self.view().node(identity.node()) {
            Ok(known) => known.map_or(0, |node| node.boot),
            Err(error) => {
                tracing::warn!(%error, "read this node's own record");
                return false;
            }
        };
        if known > identity.boot() {
            tracing::error!(
                node = %identity.node(),
                boot = identity.boot(),
                known,
                "a later start of this node is known: a copy of its data directory runs or ran elsewhere; \
                 stop one of the two, and join it again with an empty data directory"
            );
            stderr::exit(1);
        }
        known == identity.boot()
    }
}
