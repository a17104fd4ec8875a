//! What one machine is told: paths, ports, the region. The file, then the environment
//! (`ROADSTEAD_<SECTION>__<KEY>`), then the command line; the later wins. A mistake is answered
//! with its place and the nearest key, and all of them are answered at once.
//!
//! Settings that must be the same everywhere are not here: they live in the replicated state.

mod keys;
mod networks;

pub use networks::Networks;

use crate::certs::CertFiles;
use crate::certs::PeerFiles;
use crate::metadata::Timing;
use crate::topology::RegionName;
use crate::topology::Role;
use keys::Value;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use toml::de::DeTable;
use toml::de::DeValue;

/// Checked: everything that a node needs to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Absent: the region that the data directory was made for.
    pub region: Option<RegionName>,
    pub role: Role,
    pub entrance: Entrance,
    pub registry_listen: SocketAddr,
    pub external_urls: Vec<String>,
    /// Absent: the registry speaks plain HTTP.
    pub registry_tls: Option<CertFiles>,
    /// Whose word on whom they speak for is taken.
    pub trusted_proxies: Networks,
    /// Absent: a node goes by what it knows of accounts, however old.
    pub auth_max_stale: Option<Duration>,
    /// Absent: the default, and no bound for loopback.
    pub connections_per_address: Option<usize>,
    pub peer_listen: SocketAddr,
    /// Absent: the address that the peer listener gets.
    pub peer_advertise: Option<String>,
    /// Absent: what the cluster signs, and plain on loopback.
    pub peer_tls: Option<PeerFiles>,
    pub join_token: Option<JoinTokenSource>,
    pub ops_listen: SocketAddr,
    pub profile: Profile,
    pub cache_mib: u64,
    pub log: Log,
    /// False: whoever reaches the registry may do everything.
    pub accounts: bool,
}

/// How this node gets into a cluster. Ignored once it is in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// The first node of a new cluster.
    Bootstrap,
    /// Through one of these peer listeners.
    Join(Vec<String>),
    /// It is in one: the data directory holds state.
    Inside,
}

/// Read only when it is needed: a token is used once.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinTokenSource {
    Word(String),
    File(PathBuf),
}

impl fmt::Debug for JoinTokenSource {
    /// The word is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinTokenSource::Word(_) => f.write_str("Word"),
            JoinTokenSource::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or `target=level,…`.
    pub level: String,
    pub json: bool,
}

/// How far apart the voters are: the same on every node, compared at join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// One machine or one data center.
    Local,
    /// Round trips up to 100 ms.
    Continental,
    /// Round trips up to 250 ms.
    Global,
}

impl Profile {
    /// A heartbeat is at least two round trips; an election starts after several lost ones.
    pub fn timing(self) -> Timing {
        let ms = Duration::from_millis;
        let (heartbeat, election_min, election_max) = match self {
            Profile::Local => (ms(200), ms(1000), ms(2000)),
            Profile::Continental => (ms(300), ms(1500), ms(2500)),
            Profile::Global => (ms(500), ms(2000), ms(3000)),
        };
        Timing {
            heartbeat,
            election_min,
            election_max,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Local => "local",
            Profile::Continental => "continental",
            Profile::Global => "global",
        }
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        match text {
            "local" => Ok(Profile::Local),
            "continental" => Ok(Profile::Continental),
            "global" => Ok(Profile::Global),
            other => Err(format!("takes local, continental or global, not {other:?}")),
        }
    }
}

/// What the sources say, before it is known whether it makes a whole.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub data_dir: Option<PathBuf>,
    pub region: Option<RegionName>,
    pub role: Option<Role>,
    pub bootstrap: Option<bool>,
    pub join: Option<Vec<String>>,
    pub registry_listen: Option<SocketAddr>,
    pub external_urls: Option<Vec<String>>,
    pub registry_cert: Option<PathBuf>,
    pub registry_key: Option<PathBuf>,
    pub trusted_proxies: Option<Networks>,
    pub auth_max_stale: Option<Duration>,
    pub connections_per_address: Option<usize>,
    pub peer_listen: Option<SocketAddr>,
    pub peer_advertise: Option<String>,
    pub peer_ca: Option<PathBuf>,
    pub peer_cert: Option<PathBuf>,
    pub peer_key: Option<PathBuf>,
    pub join_token: Option<JoinTokenSource>,
    pub ops_listen: Option<SocketAddr>,
    pub profile: Option<Profile>,
    pub cache_mib: Option<u64>,
    pub log_level: Option<String>,
    pub log_json: Option<bool>,
}

/// One mistake, and where it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE`, the name of a variable, or an option.
    pub place: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl Draft {
    /// Takes over what the file says. Reading it is the caller's part.
    pub fn add_file(&mut self, path: &Path, content: &str) -> Vec<Problem> {
        let line = |at: usize| content.get(..at).unwrap_or(content).matches('\n').count() + 1;
        let problem = |(line, message): (usize, String)| Problem {
            place: format!("{}:{line}", path.display()),
            message,
        };
        let table = match DeTable::parse(content) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                return vec![problem((line(at), error.message().to_owned()))];
            }
        };
        // The table is in the order of its keys; a reader goes by lines.
        let mut mistakes = Vec::new();
        for (section, value) in &table {
            let name: &str = section.get_ref();
            let section_line = line(section.span().start);
            match value.get_ref() {
                _ if !keys::KEYS.iter().any(|k| k.section == name) => {
                    mistakes.push((section_line, unknown_section(name)));
                }
                DeValue::Table(entries) => {
                    for (key, value) in entries {
                        if let Err(why) = self.set(name, key.get_ref(), to_value(value.get_ref())) {
                            mistakes.push((line(key.span().start), why));
                        }
                    }
                }
                _ => mistakes.push((
                    section_line,
                    format!("{name} is a section: write [{name}] on a line of its own"),
                )),
            }
        }
        mistakes.sort();
        mistakes.into_iter().map(problem).collect()
    }

    /// Takes over `ROADSTEAD_<SECTION>__<KEY>`. `ROADSTEAD_TEST__…` belongs to tests.
    pub fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            let Some(key) = name.strip_prefix("ROADSTEAD_") else {
                continue;
            };
            let Some((section, key)) = key.split_once("__") else {
                continue;
            };
            if section == "TEST" {
                continue;
            }
            let section = section.to_lowercase();
            let result = match value.into_string() {
                Ok(value) => self.set(&section, &key.to_lowercase(), Value::Text(value)),
                Err(_) => Err("is not UTF-8 text".to_owned()),
            };
            if let Err(message) = result {
                problems.push(Problem {
                    place: name.to_owned(),
                    message,
                });
            }
        }
        problems
    }

    /// Takes over what an option of the command line says.
    pub fn set_text(&mut self, section: &str, name: &str, value: String) -> Result<(), String> {
        self.set(section, name, Value::Text(value))
    }

    fn set(&mut self, section: &str, name: &str, value: Value) -> Result<(), String> {
        if !keys::KEYS.iter().any(|k| k.section == section) {
            return Err(unknown_section(section));
        }
        match keys::find(section, name) {
            Some(key) => (key.set)(self, value).map_err(|why| format!("{section}.{name} {why}")),
            None => Err(format!(
                "unknown key {section}.{name}; {}",
                keys::advice(section, name)
            )),
        }
    }

    /// A whole configuration, or what it lacks. `place` is what to name when nothing else is to
    /// blame: the file, or the command line.
    pub fn check(self, place: &str) -> Result<Config, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut problem = |message: String| {
            problems.push(Problem {
                place: place.to_owned(),
                message,
            })
        };
        let join = self.join.unwrap_or_default();
        let bootstrap = self.bootstrap.unwrap_or(false);
        if bootstrap && !join.is_empty() {
            problem("both bootstrap and join are set: bootstrap the first node of a cluster, join with every other".to_owned());
        }
        let inside = self.data_dir.as_deref().is_some_and(holds_state);
        match &self.data_dir {
            None => problem(
                "node.data_dir is not set: name a directory of this node's own (--data-dir DIR)"
                    .to_owned(),
            ),
            Some(dir) if !inside => {
                if !bootstrap && join.is_empty() {
                    problem(format!(
                        "the data directory {} is empty, with neither cluster.bootstrap nor cluster.join set: bootstrap = true (--bootstrap) begins a new cluster, join = [\"HOST:PORT\"] (--join) enters one",
                        dir.display()
                    ));
                }
                if self.region.is_none() {
                    problem("node.region is not set: name the region that this new node is in (--region NAME)".to_owned());
                }
            }
            Some(_) => {}
        }
        let peer_listen = self.peer_listen.unwrap_or(loopback(5010));
        if peer_listen.ip().is_unspecified() && self.peer_advertise.is_none() {
            problem("peer.listen takes every address, so peer.advertise must say which one other nodes reach (--peer-advertise HOST:PORT)".to_owned());
        }
        let registry_tls = match (self.registry_cert, self.registry_key) {
            (Some(cert), Some(key)) => Some(CertFiles { cert, key }),
            (None, None) => None,
            _ => {
                problem(
                    "registry.cert and registry.key go together: set both, or neither".to_owned(),
                );
                None
            }
        };
        let peer_tls = match (self.peer_ca, self.peer_cert, self.peer_key) {
            (Some(ca), Some(cert), Some(key)) => Some(PeerFiles {
                ca,
                own: CertFiles { cert, key },
            }),
            (None, None, None) => None,
            _ => {
                problem(
                    "peer.ca, peer.cert and peer.key go together: set all three, or none"
                        .to_owned(),
                );
                None
            }
        };
        if peer_tls.is_some() && self.join_token.is_some() && !inside {
            problem("both a join token and peer.cert are set: a token brings a certificate of its own; with peer.ca, peer.cert and peer.key no token is needed".to_owned());
        }
        let (Some(data_dir), true) = (self.data_dir, problems.is_empty()) else {
            return Err(problems);
        };
        Ok(Config {
            data_dir,
            region: self.region,
            role: self.role.unwrap_or(Role::Voter),
            entrance: match (bootstrap, join) {
                (true, _) => Entrance::Bootstrap,
                (false, join) if join.is_empty() => Entrance::Inside,
                (false, join) => Entrance::Join(join),
            },
            registry_listen: self.registry_listen.unwrap_or(loopback(5000)),
            external_urls: self.external_urls.unwrap_or_default(),
            registry_tls,
            trusted_proxies: self.trusted_proxies.unwrap_or_default(),
            auth_max_stale: self.auth_max_stale,
            connections_per_address: self.connections_per_address,
            peer_listen,
            peer_advertise: self.peer_advertise,
            peer_tls,
            join_token: self.join_token,
            ops_listen: self.ops_listen.unwrap_or(loopback(5020)),
            profile: self.profile.unwrap_or(Profile::Continental),
            cache_mib: self.cache_mib.unwrap_or(256),
            accounts: true,
            log: Log {
                level: self.log_level.unwrap_or_else(|| "info".to_owned()),
                json: self.log_json.unwrap_or(false),
            },
        })
    }
}

impl Config {
    /// Other machines reach its peer listener, so that nodes must know each other by certificates.
    pub fn is_peer_open(&self) -> bool {
        let is_loopback = |address: &str| {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        let advertised = self.peer_advertise.as_deref();
        !self.peer_listen.ip().is_loopback() || !advertised.is_none_or(is_loopback)
    }
}

/// What `serve` refuses of a configuration that makes a whole.
pub fn limits(config: &Config) -> Vec<String> {
    let mut limits = Vec::new();
    let has_way = config.peer_tls.is_some()
        || config.join_token.is_some()
        || config.entrance == Entrance::Bootstrap
        || config.data_dir.join("peer").join("cert.pem").exists();
    if config.is_peer_open() && !has_way {
        limits.push(format!(
            "peer.listen is {}, which other machines reach, and this node has no certificate: join with a token (--join-token, from `roadstead region add`), or set peer.ca, peer.cert and peer.key (`roadstead certs issue` makes them); only on loopback nodes speak without",
            config.peer_advertise.clone().unwrap_or_else(|| config.peer_listen.to_string())
        ));
    }
    limits
}

/// Whether a node has lived in this directory.
pub fn holds_state(data_dir: &Path) -> bool {
    std::fs::read_dir(data_dir.join("meta")).is_ok_and(|mut entries| entries.next().is_some())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn unknown_section(name: &str) -> String {
    match keys::nearest_section(name) {
        Some(near) => format!("unknown section [{name}]; did you mean [{near}]?"),
        None => {
            let mut sections: Vec<&str> = keys::KEYS.iter().map(|k| k.section).collect();
            sections.dedup();
            format!(
                "unknown section [{name}]; there are {}",
                sections.join(", ")
            )
        }
    }
}

fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number of that size"), Value::Integer),
        DeValue::Array(items) => {
            let texts = items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned));
            texts
                .collect::<Option<Vec<_>>>()
                .map_or(Value::Other("a mixed list"), Value::List)
        }
        DeValue::Float(_) => Value::Other("a decimal number"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}

#[cfg(test)]
mod tests;
