//! Every metric, in one place, and the logs. No global: each node has its own registry, so that
//! several nodes can live in one process (the simulation).

use crate::stderr;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::io;
use std::sync::Arc;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct FetchResult {
    /// `ok`, `next_holder`, `bad_digest`, `failed`; `passed`: to a reader, and not kept.
    pub result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CopyResult {
    /// `ok`, `replaced`, `failed`.
    pub result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct QuestionKind {
    /// `lease`, `read`, `miss`: why the leader was asked.
    pub kind: String,
}

/// Sends the logs of this process to stderr. Once a process: a second call changes nothing.
pub fn log_to_stderr(level: &str, json: bool) -> io::Result<()> {
    // What the libraries have to say below a warning is of no use to an operator. What `raft_inner`
    // logs is what its caller gets as an error, also of a call that Raft's orderly end cuts short.
    let raft = "openraft";
    let quiet = format!(
        "{raft}=error,{raft}::raft::raft_inner=off,sled=warn,hyper=warn,h2=warn,tower=warn,reqwest=warn,rustls=warn"
    );
    let filter = if level.contains('=') {
        level.to_owned()
    } else {
        format!("{level},{quiet}")
    };
    let lines = stderr::lines(|dropped| {
        tracing::warn!(
            lines = dropped,
            "lines of the log were dropped: whoever reads it did not keep up"
        );
    })?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(move || lines.clone());
    // An error means that a subscriber is set, which then stays.
    let _ = if json {
        logs.json().flatten_event(true).try_init()
    } else {
        logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .try_init()
    };
    Ok(())
}

/// Cheap to clone: each part keeps its own handle.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Arc<Registry>,
    pub blob_fetches: Family<FetchResult, Counter>,
    pub blob_copies: Family<CopyResult, Counter>,
    pub blob_blocks_bad: Counter,
    pub held_requests: Gauge,
    pub applied_index: Gauge,
    pub leader_changes: Counter,
    pub leader_questions: Family<QuestionKind, Counter>,
    pub marked_reads: Counter,
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("roadstead");
        let blob_fetches = Family::<FetchResult, Counter>::default();
        // A counter that is scraped as zero before its first event can be alerted on.
        for result in ["ok", "next_holder", "bad_digest", "failed", "passed"] {
            drop(blob_fetches.get_or_create(&FetchResult {
                result: result.to_owned(),
            }));
        }
        registry.register(
            "blob_fetches",
            "Blobs fetched from another region because someone asked",
            blob_fetches.clone(),
        );
        let blob_copies = Family::default();
        registry.register(
            "blob_copies",
            "Blobs copied to another region while they were uploaded",
            blob_copies.clone(),
        );
        let blob_blocks_bad = Counter::default();
        registry.register(
            "blob_blocks_bad",
            "Blocks on disk that did not match their checksum",
            blob_blocks_bad.clone(),
        );
        let held_requests = Gauge::default();
        registry.register(
            "held_requests",
            "Requests that wait for a leader, a receipt or a holder",
            held_requests.clone(),
        );
        let applied_index = Gauge::default();
        registry.register(
            "applied_index",
            "Index of the last applied log entry",
            applied_index.clone(),
        );
        let leader_changes = Counter::default();
        registry.register(
            "leader_changes",
            "Times that this node saw another leader",
            leader_changes.clone(),
        );
        let leader_questions = Family::default();
        registry.register(
            "leader_questions",
            "Questions to the leader about its commit index",
            leader_questions.clone(),
        );
        let marked_reads = Counter::default();
        registry.register(
            "marked_reads",
            "Reads answered with their age, because freshness could not be confirmed",
            marked_reads.clone(),
        );
        Metrics {
            registry: Arc::new(registry),
            blob_fetches,
            blob_copies,
            blob_blocks_bad,
            held_requests,
            applied_index,
            leader_changes,
            leader_questions,
            marked_reads,
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts a request as held while the returned value lives.
    pub fn hold(&self) -> Held {
        self.held_requests.inc();
        Held {
            gauge: self.held_requests.clone(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

pub struct Held {
    gauge: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_dashboards_use_are_there_from_the_start() {
        let metrics = Metrics::new();
        let held = metrics.hold();
        let text = metrics.encode().unwrap();
        for line in [
            "roadstead_blob_fetches_total{result=\"ok\"} 0",
            "roadstead_held_requests 1",
            "roadstead_applied_index 0",
            "roadstead_leader_changes_total 0",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        drop(held);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("roadstead_held_requests 0")
        );
    }
}
