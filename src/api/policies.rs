//! Policies: listed, explained for one prefix, set and unset. Everything is checked before anything
//! is proposed, so that a bad request changes nothing.

use super::Api;
use super::door::Caller;
use super::error::Refused;
use super::types::Policies;
use super::types::Policy;
use super::types::PolicyAt;
use super::types::PolicyChange;
use super::types::PolicyValue;
use crate::access::Pattern;
use crate::metadata::View;
use crate::policy::Effective;
use crate::policy::Key;
use crate::policy::Prefix;
use crate::policy::Settings;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body as Command;
use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::State;
use axum::extract::rejection::PathRejection;
use axum::extract::rejection::QueryRejection;
use futures_util::StreamExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

const BODY_MAX: usize = 16 << 10;

type Answer<T> = Result<Json<T>, Refused>;
type InPath = Result<Path<String>, PathRejection>;

fn refuse(message: impl ToString) -> Refused {
    let next = "`roadstead policy set --help` says what prefixes, keys and values there are";
    Refused::invalid(message, next)
}

fn parse_prefix(path: InPath) -> Result<Prefix, Refused> {
    let Path(text) = path.map_err(|error| refuse(error.body_text()))?;
    text.parse().map_err(refuse)
}

async fn read(body: Body) -> Result<Vec<u8>, Refused> {
    let mut all = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| refuse(format!("the request broke off: {error}")))?;
        if all.len() + piece.len() > BODY_MAX {
            let told = format!("more than {BODY_MAX} bytes of keys and values");
            return Err(refuse(told));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// `{"KEY": VALUE, …}`; a number may also be written as text.
fn parse_settings(body: &[u8]) -> Result<Settings, Refused> {
    let parsed: BTreeMap<String, Value> = serde_json::from_slice(body)
        .map_err(|error| refuse(format!("not an object of keys and values: {error}")))?;
    let mut settings = Settings::default();
    for (key, value) in parsed {
        let key: Key = key.parse().map_err(refuse)?;
        let value = match value {
            Value::String(text) => text,
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(refuse(format!("{key} takes one value"))),
        };
        settings.set(key, &value).map_err(refuse)?;
    }
    if settings.is_empty() {
        return Err(refuse("no key is given"));
    }
    Ok(settings)
}

fn value(key: Key, text: &str) -> Value {
    match key {
        Key::Ack | Key::Copies => text.parse().map_or(Value::Null, |n: u32| n.into()),
        Key::Sparse | Key::Immutable | Key::Visibility => text.into(),
    }
}

fn values(settings: &Settings) -> BTreeMap<String, Value> {
    let of = |key: Key| Some((key.to_string(), value(key, &settings.get(key)?)));
    Key::ALL.into_iter().filter_map(of).collect()
}

fn effective(policy: &Effective) -> BTreeMap<String, PolicyValue> {
    let of = |(key, text, from): (Key, String, Option<&str>)| {
        let from = from.map(str::to_owned);
        let value = value(key, &text);
        (key.to_string(), PolicyValue { value, from })
    };
    policy.rows().into_iter().map(of).collect()
}

fn milliseconds(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// A policy is seen and changed by whoever administers what it is for.
fn must_admin(caller: &Caller, prefix: &Prefix, what: &str) -> Result<(), Refused> {
    caller.must_admin(&Pattern::from(prefix), what)
}

/// An admin of a prefix says who may see it; how safely it is kept is for the whole registry's to say.
fn must_change(caller: &Caller, prefix: &Prefix, keys: &[Key], what: &str) -> Result<(), Refused> {
    must_admin(caller, prefix, what)?;
    match keys.iter().all(|key| *key == Key::Visibility) {
        true => Ok(()),
        false => caller.must_admin_all(what),
    }
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Answer<Policies> {
    let look = |view: &View| Ok((view.policy_defaults()?, view.policies()?));
    let read = api.metadata.read(look).await?;
    let (defaults, stored) = read.value;
    let defaults = effective(&Effective::from(defaults));
    let policy = |(prefix, settings): (String, Settings)| Policy {
        prefix,
        set: values(&settings),
    };
    let is_seen = |prefix: &str| {
        let prefix = prefix.parse::<Prefix>();
        prefix.is_ok_and(|prefix| caller.is_admin_of(&Pattern::from(&prefix)))
    };
    Ok(Json(Policies {
        defaults: defaults.into_iter().map(|(k, v)| (k, v.value)).collect(),
        policies: stored
            .into_iter()
            .filter(|(prefix, _)| is_seen(prefix))
            .map(policy)
            .collect(),
        staleness_ms: read.staleness.map(milliseconds),
    }))
}

pub(super) async fn show(State(api): State<Api>, caller: Caller, path: InPath) -> Answer<PolicyAt> {
    let prefix = parse_prefix(path)?;
    must_admin(&caller, &prefix, "policy-show")?;
    let look = |view: &View| Ok((view.policy_set(&prefix)?, view.policy(&prefix)?));
    let read = api.metadata.read(look).await?;
    let (set, counts) = read.value;
    Ok(Json(PolicyAt {
        prefix: prefix.to_string(),
        set: values(&set),
        effective: effective(&counts),
        staleness_ms: read.staleness.map(milliseconds),
    }))
}

pub(super) async fn set(
    State(api): State<Api>,
    caller: Caller,
    path: InPath,
    body: Body,
) -> Answer<PolicyChange> {
    let prefix = parse_prefix(path)?;
    let changes = parse_settings(&read(body).await?)?;
    let keys = Key::ALL.into_iter();
    let keys: Vec<Key> = keys.filter(|key| changes.get(*key).is_some()).collect();
    must_change(&caller, &prefix, &keys, "policy-set")?;
    let told = keys
        .iter()
        .filter_map(|key| Some(format!("{key}={}", changes.get(*key)?)));
    let told: Vec<String> = told.collect();
    let body = Command::SetPolicy(pb::SetPolicy {
        prefix: prefix.to_string(),
        set: Some(pb::PolicyRecord::from(&changes)),
    });
    let before = api.metadata.view().policy_set(&prefix)?;
    caller
        .change("policy-set", &prefix, told.join(" "), body)
        .await?;
    changed(&api, &prefix, &keys, &before)
}

pub(super) async fn unset(
    State(api): State<Api>,
    caller: Caller,
    path: InPath,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Answer<PolicyChange> {
    let prefix = parse_prefix(path)?;
    let Query(query) = query.map_err(|error| refuse(error.body_text()))?;
    let mut keys: Vec<Key> = Vec::new();
    for (name, value) in query {
        if name != "key" {
            return Err(refuse(format!(
                "{name:?} is not known here; name keys with ?key="
            )));
        }
        keys.push(value.parse().map_err(refuse)?);
    }
    if keys.is_empty() {
        return Err(refuse("no key is given"));
    }
    must_change(&caller, &prefix, &keys, "policy-unset")?;
    let named: Vec<String> = keys.iter().map(Key::to_string).collect();
    let told = named.join(" ");
    let body = Command::UnsetPolicy(pb::UnsetPolicy {
        prefix: prefix.to_string(),
        keys: named,
    });
    let before = api.metadata.view().policy_set(&prefix)?;
    caller.change("policy-unset", &prefix, told, body).await?;
    changed(&api, &prefix, &keys, &before)
}

fn changed(api: &Api, prefix: &Prefix, keys: &[Key], before: &Settings) -> Answer<PolicyChange> {
    let view = api.metadata.view();
    let counts = view.policy(prefix)?;
    Ok(Json(PolicyChange {
        prefix: prefix.to_string(),
        before: values(before),
        set: values(&view.policy_set(prefix)?),
        warnings: warnings(prefix, keys, &counts, &view)?,
        effective: effective(&counts),
    }))
}

/// What an operator may not have meant.
fn warnings(
    prefix: &Prefix,
    keys: &[Key],
    counts: &Effective,
    view: &View,
) -> io::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let (ack, copies) = (counts.ack.value, counts.copies.value);
    let regions = view.data_regions()?;
    let is_about = |key| keys.contains(&key);
    if is_about(Key::Ack) || is_about(Key::Copies) {
        if copies < ack {
            warnings.push(format!(
                "copies={copies} is below ack={ack}: a push waits for {ack} regions, but only {copies} are kept up"
            ));
        }
        if regions > 1 && (ack == 1 || copies == 1) {
            warnings.push(format!(
                "with ack={ack} and copies={copies} the loss of one region can lose images that were acknowledged"
            ));
        }
    }
    for (key, number) in [(Key::Ack, ack), (Key::Copies, copies)] {
        if is_about(key) && number as usize > regions {
            warnings.push(format!(
                "{key}={number} is more than there are regions with blobs: {regions} until more join"
            ));
        }
    }
    for (other, settings) in view.policies()? {
        let is_below = match prefix {
            Prefix::All => other != crate::policy::ALL,
            Prefix::Under(name) => {
                let rest = other.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.starts_with('/'))
            }
        };
        let kept = keys
            .iter()
            .filter_map(|key| Some((key, settings.get(*key)?)));
        for (key, value) in kept.filter(|_| is_below) {
            warnings.push(format!("{other} keeps its own {key}={value}"));
        }
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_whole_or_not_at_all() {
        let settings = parse_settings(br#"{"ack": 1, "copies": "2", "immutable": true}"#);
        let settings = settings.ok().unwrap();
        let shown = serde_json::json!(values(&settings));
        assert_eq!(
            shown,
            serde_json::json!({"ack": 1, "copies": 2, "immutable": "true"})
        );
        for bad in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"ack": 1.5}"#,
            r#"{"ack": 0}"#,
            r#"{"ack": null}"#,
            r#"{"ack": [1]}"#,
            r#"{"ack": 1, "acks": 1}"#,
            r#"{"sparse": true}"#,
        ] {
            assert!(parse_settings(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
