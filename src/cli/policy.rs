//! `roadstead policy`: what counts for which repositories, changed everywhere at once. The server
//! judges keys and values, so that there is one place that knows them.

use super::client::Client;
use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::Policies;
use crate::api::types::PolicyAt;
use crate::api::types::PolicyChange;
use crate::api::types::PolicyValue;
use crate::api::types::PolicyValues;
use crate::policy::Prefix;
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(10);
/// The server holds a write through an election.
const WAIT_FOR_WRITE: Duration = Duration::from_secs(40);

const KEYS: &str = "\
Prefixes:
  *         the whole registry; quote it for the shell
  team      the repositories team, team/app, team/app/x; not teams
For each key the longest prefix that sets it wins.

Keys:
  ack=1..7                     regions that must have every blob before a push is acknowledged
  copies=1..7                  regions that are to have it in the end
  sparse=refuse|allow          whether an image may name blobs that are not there
  visibility=private|public    whether anyone may pull, without a login
  immutable=true|false|GLOBS   tags that can neither be moved nor deleted once they exist; in GLOBS
                               * is any characters, ? is one, commas separate: 'v*,release-*'";

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What each prefix sets; with PREFIX, what counts there and which prefix says so
    #[command(after_help = KEYS)]
    Show {
        /// A repository, or the path components that repositories begin with, or '*'
        prefix: Option<String>,
    },
    /// Set keys for all repositories under a prefix, in every region at once
    #[command(after_help = KEYS)]
    Set {
        /// The path components that repositories begin with, or '*' for the whole registry
        prefix: String,
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Take keys back: what counts then comes from a shorter prefix, or from the cluster
    #[command(after_help = KEYS)]
    Unset {
        /// As it was set
        prefix: String,
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

pub async fn run(command: Command, connection: Connection, format: Format) -> Result<(), Failure> {
    let client = connection.open()?;
    match command {
        Command::Show { prefix: None } => {
            let found: Policies = client.get("/api/v1/policies", WAIT).await?;
            match format {
                Format::Json => output::json(&found),
                Format::Table => output::print(&render_all(&found)),
            }
        }
        Command::Show {
            prefix: Some(prefix),
        } => {
            let found: PolicyAt = client.get(&path(&prefix)?, WAIT).await?;
            match format {
                Format::Json => output::json(&found),
                Format::Table => output::print(&render_one(&found)),
            }
        }
        Command::Set { prefix, settings } => {
            let body = Value::Object(pairs(&settings)?);
            changed(&client, Method::PUT, &path(&prefix)?, Some(&body), format).await
        }
        Command::Unset { prefix, keys } => {
            let mut path = path(&prefix)?;
            for (i, key) in keys.iter().enumerate() {
                path.push_str(if i == 0 { "?key=" } else { "&key=" });
                path.push_str(&word(key)?);
            }
            changed(&client, Method::DELETE, &path, None, format).await
        }
    }
}

async fn changed(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
    format: Format,
) -> Result<(), Failure> {
    let change: PolicyChange = client.call(method, path, body, WAIT_FOR_WRITE).await?;
    match format {
        Format::Json => output::json(&change),
        Format::Table => output::print(&render_change(&change)),
    }
}

fn path(prefix: &str) -> Result<String, Failure> {
    let prefix: Prefix = prefix.parse().map_err(|error| {
        let next = "write it as team, as team/app, or as '*' in quotes";
        Failure::refused(format!("{error}"), next)
    })?;
    Ok(format!("/api/v1/policies/{prefix}"))
}

/// A key as it can stand in an address.
fn word(key: &str) -> Result<String, Failure> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !key.is_empty() && key.bytes().all(is_word) {
        return Ok(key.to_owned());
    }
    Err(Failure::refused(
        format!("{key:?} is not a key"),
        "write only the key: roadstead policy unset team sparse",
    ))
}

fn pairs(settings: &[String]) -> Result<serde_json::Map<String, Value>, Failure> {
    let mut pairs = serde_json::Map::new();
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(Failure::refused(
                format!("{setting:?} is not KEY=VALUE"),
                "write it as sparse=allow; `roadstead policy set --help` shows the keys",
            ));
        };
        if pairs.insert(key.to_owned(), value.into()).is_some() {
            return Err(Failure::refused(
                format!("{key} is given twice"),
                "give each key once",
            ));
        }
    }
    Ok(pairs)
}

/// As it is typed.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// For a command line that is to be copied.
fn quoted(text: &str) -> String {
    if text.contains(['*', '?']) {
        format!("'{text}'")
    } else {
        text.to_owned()
    }
}

fn settings(set: &PolicyValues) -> String {
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", text(value));
    set.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn source(value: &PolicyValue) -> &str {
    value.from.as_deref().unwrap_or("default")
}

fn age(staleness_ms: Option<u64>) -> String {
    match staleness_ms {
        Some(ms) => format!(
            "\nwarning: this region has not heard from the leader for {ms} ms; it may have changed since\n"
        ),
        None => String::new(),
    }
}

fn render_all(found: &Policies) -> String {
    let mut rows = vec![vec!["(default)".to_owned(), settings(&found.defaults)]];
    for policy in &found.policies {
        rows.push(vec![policy.prefix.clone(), settings(&policy.set)]);
    }
    output::table(&["PREFIX", "SETS"], rows)
        + "\nwhat counts for one: roadstead policy show REPOSITORY\n"
        + &age(found.staleness_ms)
}

fn render_one(found: &PolicyAt) -> String {
    let rows = found
        .effective
        .iter()
        .map(|(key, value)| vec![key.clone(), text(&value.value), source(value).to_owned()]);
    output::table(&["KEY", "VALUE", "FROM"], rows.collect()) + &age(found.staleness_ms)
}

fn render_change(change: &PolicyChange) -> String {
    let (before, now) = (&change.before, &change.set);
    let prefix = quoted(&change.prefix);
    let touched = change
        .effective
        .iter()
        .filter(|(key, _)| before.get(*key) != now.get(*key));
    let mut lines = Vec::new();
    let mut undo: Vec<String> = Vec::new();
    let (mut back, mut gone) = (String::new(), String::new());
    for (key, value) in touched {
        let what = match now.contains_key(key) {
            true => format!("{}: {key}={}", change.prefix, text(&value.value)),
            false => format!(
                "{}: {key} is no longer set; {key}={} counts, from {}",
                change.prefix,
                text(&value.value),
                source(value)
            ),
        };
        lines.push(what);
        match before.get(key) {
            Some(value) => {
                back.push(' ');
                back.push_str(&quoted(&format!("{key}={}", text(value))));
            }
            None => gone.push_str(&format!(" {key}")),
        }
    }
    if lines.is_empty() {
        lines.push(format!("{}: nothing changed", change.prefix));
    }
    lines.extend(
        change
            .warnings
            .iter()
            .map(|text| format!("warning: {text}")),
    );
    if !back.is_empty() {
        undo.push(format!("roadstead policy set {prefix}{back}"));
    }
    if !gone.is_empty() {
        undo.push(format!("roadstead policy unset {prefix}{gone}"));
    }
    if !undo.is_empty() {
        lines.push(format!("undo: {}", undo.join(" && ")));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn change(before: Value, set: Value, effective: Value) -> PolicyChange {
        serde_json::from_value(json!({
            "prefix": "*", "before": before, "set": set, "effective": effective, "warnings": ["look"],
        }))
        .unwrap()
    }

    #[test]
    fn a_change_says_what_it_did_and_how_to_undo_it() {
        let effective = json!({
            "ack": {"value": 2, "from": null},
            "immutable": {"value": "v*", "from": "*"},
            "sparse": {"value": "refuse", "from": "*"},
        });
        let told = render_change(&change(
            json!({"ack": 1, "immutable": "r?", "sparse": "refuse"}),
            json!({"immutable": "v*", "sparse": "refuse"}),
            effective.clone(),
        ));
        assert_eq!(
            told,
            "*: ack is no longer set; ack=2 counts, from default\n\
             *: immutable=v*\n\
             warning: look\n\
             undo: roadstead policy set '*' ack=1 'immutable=r?'\n"
        );
        let told = render_change(&change(json!({}), json!({"sparse": "refuse"}), effective));
        assert_eq!(
            told,
            "*: sparse=refuse\nwarning: look\nundo: roadstead policy unset '*' sparse\n"
        );
    }

    #[test]
    fn tables_say_where_each_value_comes_from() {
        let all: Policies = serde_json::from_value(json!({
            "defaults": {"ack": 2, "sparse": "refuse"},
            "policies": [{"prefix": "team", "set": {"sparse": "allow"}}],
            "staleness_ms": null,
        }))
        .unwrap();
        assert!(
            render_all(&all).starts_with(
                "PREFIX     SETS\n(default)  ack=2 sparse=refuse\nteam       sparse=allow\n"
            ),
            "{}",
            render_all(&all)
        );
        let one: PolicyAt = serde_json::from_value(json!({
            "prefix": "team/app", "set": {},
            "effective": {"ack": {"value": 2, "from": null}, "sparse": {"value": "allow", "from": "team"}},
            "staleness_ms": 4000,
        }))
        .unwrap();
        let told = render_one(&one);
        assert!(
            told.starts_with("KEY     VALUE  FROM\nack     2      default\nsparse  allow  team\n")
        );
        assert!(told.contains("4000 ms"), "{told}");
    }

    #[test]
    fn what_is_no_prefix_key_or_pair_is_refused_before_anyone_is_asked() {
        for bad in ["team/", "Team", "a?b", ""] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(word("a&b").is_err() && word("sparse=allow").is_err());
        assert!(pairs(&["sparse".to_owned()]).is_err());
        assert!(pairs(&["ack=1".to_owned(), "ack=2".to_owned()]).is_err());
    }
}
