//! Which client's request a task works for: told to the client, written with every log line, and
//! carried to other nodes with every call, so that one id finds all that happened for it.
//!
//! What must stay true: a task that is spawned for a request has its id (tasks.rs hands it on).

use std::fmt;
use std::str::FromStr;
use tokio::task::futures::TaskLocalFuture;
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// 16 hex digits, as clients, logs and peers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

tokio::task_local! {
    static CURRENT: Option<RequestId>;
}

impl RequestId {
    pub fn random() -> RequestId {
        RequestId(rand::random())
    }

    /// None in the loops that a node runs by itself.
    pub fn current() -> Option<RequestId> {
        CURRENT.try_with(|id| *id).ok().flatten()
    }

    /// Does `work` for this request; its log lines say so. `from`: the region or node that asks.
    pub fn serve<F: Future>(
        self,
        from: &str,
        work: F,
    ) -> Instrumented<TaskLocalFuture<Option<RequestId>, F>> {
        // At the level of errors, so that no filter takes the id from a line that is shown.
        let span = tracing::error_span!("request", id = %self, from);
        CURRENT.scope(Some(self), work).instrument(span)
    }
}

/// `work` for the request that the caller works for.
pub fn carried<F: Future>(work: F) -> Instrumented<TaskLocalFuture<Option<RequestId>, F>> {
    CURRENT.scope(RequestId::current(), work).in_current_span()
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RequestId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<RequestId, Self::Err> {
        u64::from_str_radix(text, 16).map(RequestId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Tasks;

    #[tokio::test]
    async fn what_is_spawned_for_a_request_works_for_it() {
        assert_eq!(RequestId::current(), None);
        let (id, tasks) = (RequestId::random(), Tasks::new());
        let spawned = id.serve("client", async {
            assert_eq!(RequestId::current(), Some(id));
            tasks.spawn(async { RequestId::current() }).await.unwrap()
        });
        assert_eq!(spawned.await, Some(id));
        let alone = tasks.spawn(async { RequestId::current() }).await.unwrap();
        assert_eq!(alone, None);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 16);
    }
}
