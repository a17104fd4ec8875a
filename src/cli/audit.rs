//! `roadstead audit` and `roadstead signing-key`.

use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::AuditLog;
use crate::api::types::Event;
use crate::api::types::SigningKeys;
use crate::audit::Outcome;
use reqwest::Method;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(40);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How far back
    #[arg(long, value_parser = output::duration, default_value = "1h", value_name = "TIME")]
    since: Duration,
    /// Only these outcomes
    #[arg(long, value_name = "OUTCOME", value_parser = ["done", "denied", "failed"])]
    outcome: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub enum SigningKey {
    /// The keys that short-lived tokens are signed with
    List,
    /// Sign with a new key from now on; what the old ones have signed stays good
    Rotate {
        /// What the old ones have signed is refused at once: everyone logs in again. For a key that leaked
        #[arg(long)]
        drop_old: bool,
    },
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Denied => "denied",
        Outcome::Failed => "failed",
    }
}

/// Each region keeps what went through it: the one that answers says which it is.
pub async fn run(args: Args, connection: Connection, format: Format) -> Result<(), Failure> {
    let client = connection.open()?;
    let path = format!("/api/v1/audit?since_seconds={}", args.since.as_secs());
    let mut log: AuditLog = client.get(&path, WAIT).await?;
    log.events.retain(|event| {
        args.outcome
            .as_deref()
            .is_none_or(|only| only == word(event.outcome))
    });
    if format == Format::Json {
        return output::json(&log);
    }
    let row = |event: &Event| {
        let at = event.at.get(..19).unwrap_or(&event.at).replace('T', " ");
        vec![
            at,
            event.who.clone(),
            event.from.clone().unwrap_or_else(|| "-".to_owned()),
            event.action.clone(),
            event.target.clone(),
            word(event.outcome).to_owned(),
            event
                .index
                .map(|index| index.to_string())
                .unwrap_or_default(),
            event.detail.clone(),
        ]
    };
    let header = [
        "TIME (UTC)",
        "WHO",
        "FROM",
        "ACTION",
        "TARGET",
        "OUTCOME",
        "INDEX",
        "DETAIL",
    ];
    let rows: Vec<_> = log.events.iter().map(row).collect();
    let end = format!(
        "{} lines of region {}; each region keeps its own: ask another with --server\n",
        rows.len(),
        log.region
    );
    output::print(&output::table(&header, rows))?;
    output::print(&end)
}

pub async fn signing_key(
    command: SigningKey,
    connection: Connection,
    format: Format,
) -> Result<(), Failure> {
    let client = connection.open()?;
    let (method, path) = match command {
        SigningKey::List => (Method::GET, "/api/v1/signing-keys".to_owned()),
        SigningKey::Rotate { drop_old } => {
            let path = format!("/api/v1/signing-keys?drop_old={drop_old}");
            (Method::POST, path)
        }
    };
    let keys: SigningKeys = client.call(method, &path, None, WAIT).await?;
    if format == Format::Json {
        return output::json(&keys);
    }
    let rows = keys.keys.iter().map(|key| {
        let state = key.retired_at_ms.map_or("signs".to_owned(), |at| {
            format!("retired {}", output::time(at))
        });
        vec![key.kid.clone(), output::time(key.created_at_ms), state]
    });
    output::print(&output::table(
        &["KEY", "MADE (UTC)", "STATE"],
        rows.collect(),
    ))
}
