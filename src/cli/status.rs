//! `roadstead status`: the cluster on one screen.

use super::client::Client;
use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::Region;
use crate::api::types::State;
use crate::api::types::Status;
use std::time::Duration;
use tokio::time::Instant;

const WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until the cluster is healthy; exit code 1 if it is not in time
    #[arg(long)]
    wait_healthy: bool,
    /// How long to wait
    #[arg(long, value_parser = output::duration, default_value = "5m", requires = "wait_healthy")]
    timeout: Duration,
}

pub async fn run(args: Args, connection: Connection, format: Format) -> Result<(), Failure> {
    let client = connection.open()?;
    if !args.wait_healthy {
        return show(&client.get("/api/v1/status", WAIT).await?, format);
    }
    let deadline = Instant::now() + args.timeout;
    let status = loop {
        let answer = ask(&client, deadline).await;
        match answer {
            Ok(status) if status.healthy => break status,
            _ if Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
            answer => break answer?,
        }
    };
    show(&status, format)?;
    if status.healthy {
        return Ok(());
    }
    Err(Failure::limit(
        format!(
            "not healthy after {:?}: {}",
            args.timeout,
            status.reasons.join("; ")
        ),
        "look into the logs of the regions named above",
    ))
}

async fn ask(client: &Client, deadline: Instant) -> Result<Status, Failure> {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_secs(1));
    client.get("/api/v1/status", WAIT.min(left)).await
}

fn show(status: &Status, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(status),
        Format::Table => output::print(&render(status)),
    }
}

fn render(status: &Status) -> String {
    let mut text = format!("{}\n\n", first_line(status));
    let header = [
        "REGION",
        "ROLE",
        "STATE",
        "LAG",
        "ROUND TRIP",
        "DISK FREE",
        "BLOBS MISSING",
    ];
    text.push_str(&output::table(
        &header,
        status.regions.iter().map(row).collect(),
    ));
    let told = status.reasons.iter().map(|reason| ("not healthy", reason));
    let warned = status.warnings.iter().map(|warning| ("warning", warning));
    for (word, line) in told.chain(warned) {
        text.push_str(&format!("\n{word}: {line}"));
    }
    if !(status.reasons.is_empty() && status.warnings.is_empty()) {
        text.push('\n');
    }
    text
}

/// What an operator wants to know first, always in the same places.
fn first_line(status: &Status) -> String {
    let yes_or_no = |yes| if yes { "yes" } else { "no" };
    let pulls = status
        .regions
        .iter()
        .any(|region| region.state != State::Unreachable);
    let survives = match status.failure_tolerance {
        0 => "no region".to_owned(),
        1 => "1 region".to_owned(),
        n => format!("{n} regions"),
    };
    format!(
        "{}  pushes {}  pulls {}  survives the loss of {survives}  leader {}",
        if status.healthy {
            "HEALTHY"
        } else {
            "NOT HEALTHY"
        },
        yes_or_no(status.writable),
        yes_or_no(pulls),
        status.leader.as_deref().unwrap_or("none"),
    )
}

fn row(region: &Region) -> Vec<String> {
    let answers = region.state != State::Unreachable;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        region.name.clone(),
        region.role.to_string(),
        region.state.to_string(),
        or_dash(answers.then(|| region.lag.to_string())),
        or_dash(region.round_trip_ms.map(|ms| format!("{ms:.1} ms"))),
        or_dash(region.disk_free.map(output::bytes)),
        region.blobs_missing.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::StateHash;
    use crate::topology::Role;

    fn region(name: &str, state: State) -> Region {
        Region {
            name: name.to_owned(),
            role: Role::Voter,
            state,
            applied_index: 42,
            lag: 1,
            round_trip_ms: (name != "r1").then_some(1.2),
            blobs_held: 10,
            blobs_missing: 0,
            bytes_held: 123,
            sole_copies: 0,
            disk_total: Some(1 << 40),
            disk_free: Some(3 << 29),
            version: "0.1.0".to_owned(),
            nodes: Vec::new(),
        }
    }

    fn status(healthy: bool) -> Status {
        Status {
            cluster_id: "c".to_owned(),
            lineage: "l".to_owned(),
            healthy,
            writable: healthy,
            reasons: Vec::new(),
            warnings: Vec::new(),
            failure_tolerance: usize::from(healthy),
            leader: healthy.then(|| "r1".to_owned()),
            term: 3,
            under_replicated_blobs: 0,
            state_hash: StateHash {
                index: 42,
                hash: "00".to_owned(),
            },
            regions: vec![region("r1", State::Up), region("r2", State::Up)],
        }
    }

    #[test]
    fn the_first_line_says_what_works_and_what_can_be_lost() {
        assert_eq!(
            first_line(&status(true)),
            "HEALTHY  pushes yes  pulls yes  survives the loss of 1 region  leader r1"
        );
        assert_eq!(
            first_line(&status(false)),
            "NOT HEALTHY  pushes no  pulls yes  survives the loss of no region  leader none"
        );
    }

    #[test]
    fn a_region_is_a_row_and_what_is_not_known_is_a_dash() {
        let mut lost = status(false);
        lost.regions[1] = region("r2", State::Unreachable);
        lost.regions[1].round_trip_ms = None;
        lost.reasons.push("region r2 is unreachable".to_owned());
        let text = render(&lost);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[2],
            "REGION  ROLE   STATE        LAG  ROUND TRIP  DISK FREE  BLOBS MISSING"
        );
        assert_eq!(
            lines[3],
            "r1      voter  up           1    -           1.5 GiB    0"
        );
        assert_eq!(
            lines[4],
            "r2      voter  unreachable  -    -           1.5 GiB    0"
        );
        assert_eq!(lines[6], "not healthy: region r2 is unreachable");
    }
}
