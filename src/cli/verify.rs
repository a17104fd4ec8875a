//! `roadstead verify`: whether every node has the same.

use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::MetadataVerification;
use crate::api::types::NodeHash;
use crate::api::types::Verdict;
use std::time::Duration;

/// The server asks the nodes for up to ten seconds.
const WAIT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare the replicated state of all nodes, at one index
    #[arg(long, required = true)]
    metadata: bool,
}

pub async fn run(_: Args, connection: Connection, format: Format) -> Result<(), Failure> {
    let client = connection.open()?;
    let found: MetadataVerification = client.get("/api/v1/verify/metadata", WAIT).await?;
    match format {
        Format::Json => output::json(&found)?,
        Format::Table => output::print(&render(&found))?,
    }
    judge(&found)
}

fn judge(found: &MetadataVerification) -> Result<(), Failure> {
    let silent: Vec<&str> = found
        .nodes
        .iter()
        .filter(|node| node.hash.is_none())
        .map(|node| node.region.as_str())
        .collect();
    match found.verdict {
        Verdict::Equal => Ok(()),
        Verdict::Different => Err(Failure::limit(
            "the nodes do not have the same state",
            "find the one that differs from the majority, and let it rejoin with an empty data directory; keep the old one and report it",
        )),
        Verdict::Unknown if silent.is_empty() => Err(Failure::limit(
            "the nodes did not reach one index at the same time",
            "try again when there are fewer writes, or when the slow region has caught up",
        )),
        Verdict::Unknown => Err(Failure::limit(
            format!("not every node answered: {}", silent.join(", ")),
            "bring them back, then verify again",
        )),
    }
}

fn render(found: &MetadataVerification) -> String {
    let row = |node: &NodeHash| {
        let hash = node
            .hash
            .as_ref()
            .map_or("no answer", |hash| hash.get(..16).unwrap_or(hash));
        let index = node.index.map_or("-".to_owned(), |index| index.to_string());
        vec![
            node.region.clone(),
            node.node.clone(),
            index,
            hash.to_owned(),
        ]
    };
    let header = ["REGION", "NODE", "INDEX", "STATE HASH"];
    let mut text = output::table(&header, found.nodes.iter().map(row).collect());
    if let (Verdict::Equal, Some(index)) = (found.verdict, found.index) {
        text.push_str(&format!(
            "\nevery node has the same state at index {index}\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(region: &str, hash: Option<&str>) -> NodeHash {
        NodeHash {
            node: "0000000000000001".to_owned(),
            region: region.to_owned(),
            index: hash.map(|_| 42),
            hash: hash.map(str::to_owned),
        }
    }

    #[test]
    fn only_an_answer_from_every_node_is_a_pass() {
        let found = |verdict, second| MetadataVerification {
            verdict,
            index: Some(42),
            nodes: vec![node("r1", Some("aa")), node("r2", second)],
        };
        let equal = found(Verdict::Equal, Some("aa"));
        assert_eq!(judge(&equal), Ok(()));
        assert!(render(&equal).ends_with("every node has the same state at index 42\n"));
        assert!(judge(&found(Verdict::Different, Some("bb"))).is_err());
        let silent = judge(&found(Verdict::Unknown, None)).unwrap_err();
        assert!(silent.message().contains("r2"), "{silent:?}");
    }
}
