//! Each key of the configuration file, once: its place, what it takes, what it means. The file,
//! the environment and the command line all go through this table, so they accept the same words
//! and answer a mistake in the same way.

use super::Draft;
use super::JoinTokenSource;
use super::Networks;
use super::Profile;
use crate::spelling::nearest;
use crate::topology::RegionName;
use crate::topology::Role;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a source gave for a key. The environment gives only text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Integer(i64),
    List(Vec<String>),
    /// A TOML type that no key takes.
    Other(&'static str),
}

pub(super) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub set: fn(&mut Draft, Value) -> Result<(), String>,
}

const fn key(
    section: &'static str,
    name: &'static str,
    set: fn(&mut Draft, Value) -> Result<(), String>,
) -> Key {
    Key { section, name, set }
}

pub(super) const KEYS: &[Key] = &[
    key("node", "data_dir", |d, v| {
        put(&mut d.data_dir, text(v).map(PathBuf::from))
    }),
    key("node", "region", |d, v| {
        put(&mut d.region, parsed::<RegionName>(v))
    }),
    key("node", "role", |d, v| put(&mut d.role, role(v))),
    key("cluster", "bootstrap", |d, v| {
        put(&mut d.bootstrap, boolean(v))
    }),
    key("cluster", "join", |d, v| {
        put(&mut d.join, list(v).and_then(peer_addresses))
    }),
    key("cluster", "join_token_file", |d, v| {
        let file = |path: String| JoinTokenSource::File(PathBuf::from(path));
        put(&mut d.join_token, text(v).map(file))
    }),
    key("registry", "listen", |d, v| {
        put(&mut d.registry_listen, listen(v))
    }),
    key("registry", "external_urls", |d, v| {
        put(&mut d.external_urls, list(v).and_then(urls))
    }),
    key("registry", "connections_per_address", |d, v| {
        let share = between(v, 1, 1 << 16).map(|n| n as usize);
        put(&mut d.connections_per_address, share)
    }),
    key("registry", "cert", |d, v| {
        put(&mut d.registry_cert, path(v))
    }),
    key("registry", "key", |d, v| put(&mut d.registry_key, path(v))),
    key("registry", "auth_max_stale", |d, v| {
        let seconds = between(v, 1, 365 * 24 * 3600).map(Duration::from_secs);
        put(&mut d.auth_max_stale, seconds)
    }),
    key("registry", "trusted_proxies", |d, v| {
        put(&mut d.trusted_proxies, list(v).and_then(Networks::parse))
    }),
    key("peer", "listen", |d, v| put(&mut d.peer_listen, listen(v))),
    key("peer", "advertise", |d, v| {
        put(&mut d.peer_advertise, text(v).and_then(peer_address))
    }),
    key("peer", "ca", |d, v| put(&mut d.peer_ca, path(v))),
    key("peer", "cert", |d, v| put(&mut d.peer_cert, path(v))),
    key("peer", "key", |d, v| put(&mut d.peer_key, path(v))),
    key("ops", "listen", |d, v| put(&mut d.ops_listen, listen(v))),
    key("raft", "profile", |d, v| put(&mut d.profile, profile(v))),
    key("meta", "cache_mib", |d, v| {
        put(&mut d.cache_mib, between(v, 8, 1 << 20))
    }),
    key("log", "level", |d, v| put(&mut d.log_level, level(v))),
    key("log", "format", |d, v| put(&mut d.log_json, format(v))),
    key("drills", "enabled", |_, v| boolean(v).map(drop)),
    key("drills", "max_seconds", |_, v| {
        between(v, 1, 86_400).map(drop)
    }),
];

pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.section == section && k.name == name)
}

/// What was probably meant by a section that does not exist.
pub(super) fn nearest_section(section: &str) -> Option<&'static str> {
    nearest(section, KEYS.iter().map(|k| k.section))
}

/// What was probably meant by a key that `section` does not have.
pub(super) fn advice(section: &str, name: &str) -> String {
    let here = KEYS.iter().filter(|k| k.section == section).map(|k| k.name);
    if let Some(near) = nearest(name, here.clone()) {
        return format!("did you mean {near}?");
    }
    let elsewhere: Vec<String> = KEYS
        .iter()
        .filter(|k| k.name == name)
        .map(|k| format!("[{}] {}", k.section, k.name))
        .collect();
    if elsewhere.is_empty() {
        format!("[{section}] takes {}", here.collect::<Vec<_>>().join(", "))
    } else {
        format!("did you mean {}?", elsewhere.join(" or "))
    }
}

fn put<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *slot = Some(value?);
    Ok(())
}

fn path(value: Value) -> Result<PathBuf, String> {
    text(value).map(PathBuf::from)
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::Text(text) if !text.is_empty() => Ok(text),
        Value::Text(_) => Err("is empty: give a value, or leave the key out".to_owned()),
        other => Err(format!("takes text in quotes, not {}", other.kind())),
    }
}

fn boolean(value: Value) -> Result<bool, String> {
    match value {
        Value::Bool(value) => Ok(value),
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        Value::Text(text) => Err(format!("takes true or false, not {text:?}")),
        other => Err(format!("takes true or false, not {}", other.kind())),
    }
}

fn between(value: Value, low: u64, high: u64) -> Result<u64, String> {
    let number = match &value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    number
        .filter(|n| (low..=high).contains(n))
        .ok_or_else(|| format!("takes a whole number from {low} to {high}"))
}

/// A list, or text with commas, which is what the environment can say.
fn list(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(items) => Ok(items),
        Value::Text(text) => Ok(text
            .split(',')
            .map(|i| i.trim().to_owned())
            .filter(|i| !i.is_empty())
            .collect()),
        other => Err(format!("takes a list of texts, not {}", other.kind())),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(value: Value) -> Result<T, String> {
    text(value)?
        .parse()
        .map_err(|error: T::Err| error.to_string())
}

fn role(value: Value) -> Result<Role, String> {
    match text(value)?.as_str() {
        "voter" => Ok(Role::Voter),
        "learner" => Ok(Role::Learner),
        "witness" => Ok(Role::Witness),
        other => Err(format!("takes voter, learner or witness, not {other:?}")),
    }
}

fn profile(value: Value) -> Result<Profile, String> {
    text(value)?.parse()
}

/// `IP:PORT`; `:PORT` is every address, `localhost:PORT` the loopback one.
fn listen(value: Value) -> Result<SocketAddr, String> {
    let text = text(value)?;
    let full = match text.split_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => text.clone(),
    };
    full.parse()
        .map_err(|_| format!("takes an address to listen on, as 127.0.0.1:5000, not {text:?}"))
}

fn peer_addresses(items: Vec<String>) -> Result<Vec<String>, String> {
    items.into_iter().map(peer_address).collect()
}

fn peer_address(text: String) -> Result<String, String> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        let host_fits = !host.is_empty() && !host.contains(['/', ' ', '@']);
        host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if fits {
        Ok(text)
    } else {
        Err(format!("takes HOST:PORT of a peer listener, not {text:?}"))
    }
}

fn urls(items: Vec<String>) -> Result<Vec<String>, String> {
    for item in &items {
        let host = item
            .strip_prefix("https://")
            .or_else(|| item.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            return Err(format!(
                "takes URLs, as https://registry.example.com, not {item:?}"
            ));
        }
    }
    Ok(items)
}

/// A level for all, or `target=level,…`.
fn level(value: Value) -> Result<String, String> {
    let text = text(value)?;
    let fits = text.split(',').all(|part| {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        level
            .trim()
            .parse::<tracing::metadata::LevelFilter>()
            .is_ok()
    });
    if fits {
        Ok(text)
    } else {
        Err(format!(
            "takes error, warn, info, debug or trace, not {text:?}"
        ))
    }
}

fn format(value: Value) -> Result<bool, String> {
    match text(value)?.as_str() {
        "text" => Ok(false),
        "json" => Ok(true),
        other => Err(format!("takes text or json, not {other:?}")),
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Bool(_) => "true or false",
            Value::Integer(_) => "a number",
            Value::List(_) => "a list",
            Value::Other(kind) => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_word_is_answered_with_the_nearest_one() {
        assert_eq!(nearest_section("registy"), Some("registry"));
        assert_eq!(nearest_section("quux"), None);
        assert_eq!(advice("node", "data-dir"), "did you mean data_dir?");
        assert_eq!(advice("node", "regoin"), "did you mean region?");
        assert_eq!(
            advice("node", "advertise"),
            "did you mean [peer] advertise?"
        );
        assert_eq!(advice("raft", "zzzzzz"), "[raft] takes profile");
    }

    #[test]
    fn listen_addresses_may_leave_out_the_host() {
        let listen = |text: &str| listen(Value::Text(text.to_owned()));
        assert_eq!(listen(":5000").unwrap(), "0.0.0.0:5000".parse().unwrap());
        assert_eq!(
            listen("localhost:5000").unwrap(),
            "127.0.0.1:5000".parse().unwrap()
        );
        assert_eq!(listen("[::1]:5000").unwrap(), "[::1]:5000".parse().unwrap());
        assert!(listen("5000").is_err());
    }
}
