//! `roadstead serve`: one node, until it is told to stop.

use super::output::Failure;
use super::output::chain;
use crate::config::Config;
use crate::config::Draft;
use crate::config::JoinTokenSource;
use crate::config::Problem;
use crate::config::Profile;
use crate::config::limits;
use crate::node;
use crate::stderr;
use crate::telemetry;
use crate::topology::RegionName;
use crate::topology::Role;
use rustix::fs::Mode;
use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::set_dumpable_behavior;
use rustix::process::setrlimit;
use rustix::process::umask;
use std::path::PathBuf;

/// Each option overrides the key of the same name in the configuration file.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's own directory: the option of all commands.
    #[arg(skip)]
    pub data_dir: Option<PathBuf>,
    /// The region that this node is in
    #[arg(long, value_name = "NAME")]
    region: Option<RegionName>,
    /// Where clients reach the registry [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDRESS")]
    registry_listen: Option<String>,
    /// Where other nodes reach this one [default: 127.0.0.1:5010]
    #[arg(long, value_name = "ADDRESS")]
    peer_listen: Option<String>,
    /// What other nodes are told to call, if not --peer-listen
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Health and metrics [default: 127.0.0.1:5020]
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<String>,
    /// Begin a new cluster
    #[arg(long)]
    bootstrap: bool,
    /// Enter the cluster of this peer listener; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// What `roadstead region add` printed: lets this new node in, and brings its certificate
    #[arg(long, value_name = "TOKEN", hide_env_values = true)]
    join_token: Option<String>,
    /// What this node does [default: voter]
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// How far apart the voters are [default: continental]
    #[arg(long, value_enum, value_name = "PROFILE")]
    raft_profile: Option<Profile>,
    /// Run without accounts: whoever reaches the registry may do everything
    #[arg(long)]
    no_auth: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let config = configure(args, std::env::vars_os())?;
    keep_to_itself();
    telemetry::log_to_stderr(&config.log.level, config.log.json)
        .map_err(|error| Failure::failed("start the thread that writes the log", &error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed("start the runtime", &error))?;
    let ended = runtime.block_on(node::run(config));
    stderr::flush();
    ended.map_err(|error| {
        let message = chain(&error);
        if error.is_refusal() {
            Failure::refused(message, error.next())
        } else {
            Failure::limit(message, error.next())
        }
    })
}

/// What is in memory, keys and passwords among it, goes into no core dump, and no other process of
/// this user may look at it; and what is written is for this user only, on whatever volume.
fn keep_to_itself() {
    umask(Mode::RWXG | Mode::RWXO);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    for error in [limited.err(), hidden.err()].into_iter().flatten() {
        tracing::warn!(%error, "turn core dumps off");
    }
}

fn configure(
    args: Args,
    environment: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Config, Failure> {
    let place = args
        .config
        .as_ref()
        .map_or("command line".to_owned(), |f| f.display().to_string());
    let mut draft = Draft::default();
    let mut problems = Vec::new();
    if let Some(path) = &args.config {
        let content = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("read the configuration file {}: {error}", path.display());
            Failure::refused(message, "name a file that exists and can be read")
        })?;
        problems.extend(draft.add_file(path, &content));
    }
    problems.extend(draft.add_environment(environment));
    let no_auth = args.no_auth;
    problems.extend(args.add_to(&mut draft));
    if !problems.is_empty() {
        return Err(refuse(&problems));
    }
    let mut config = draft.check(&place).map_err(|problems| refuse(&problems))?;
    config.accounts = !no_auth;
    let limits = limits(&config);
    if !limits.is_empty() {
        return Err(Failure::refused(
            limits.join("\n"),
            "nodes on different machines know each other by certificates: docs/certificates.md",
        ));
    }
    Ok(config)
}

pub fn refuse(problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    Failure::refused(
        lines.join("\n"),
        "correct it; `roadstead config check FILE` looks again",
    )
}

impl Args {
    fn add_to(self, draft: &mut Draft) -> Vec<Problem> {
        if let Some(data_dir) = self.data_dir {
            draft.data_dir = Some(data_dir);
        }
        draft.region = self.region.or(draft.region.take());
        draft.role = self.role.or(draft.role);
        draft.profile = self.raft_profile.or(draft.profile);
        // Either way in replaces what the file says about both.
        if self.bootstrap || !self.join.is_empty() {
            (draft.bootstrap, draft.join) = (Some(self.bootstrap), None);
        }
        if let Some(word) = self.join_token {
            draft.join_token = Some(JoinTokenSource::Word(word));
        }
        let join = Some(self.join)
            .filter(|join| !join.is_empty())
            .map(|join| join.join(","));
        [
            (
                "--registry-listen",
                "registry",
                "listen",
                self.registry_listen,
            ),
            ("--peer-listen", "peer", "listen", self.peer_listen),
            ("--peer-advertise", "peer", "advertise", self.peer_advertise),
            ("--ops-listen", "ops", "listen", self.ops_listen),
            ("--join", "cluster", "join", join),
        ]
        .into_iter()
        .filter_map(|(option, section, key, value)| {
            let message = draft.set_text(section, key, value?).err()?;
            Some(Problem {
                place: option.to_owned(),
                message,
            })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Entrance;

    fn args(dir: &std::path::Path) -> Args {
        Args {
            data_dir: Some(dir.to_owned()),
            region: Some("r1".parse().unwrap()),
            bootstrap: true,
            no_auth: true,
            ..Args::default()
        }
    }

    fn refusal(args: Args) -> String {
        configure(args, std::iter::empty())
            .unwrap_err()
            .message()
            .to_owned()
    }

    #[test]
    fn the_command_line_overrides_the_file_and_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(
            &file,
            "[cluster]\nbootstrap = true\n[ops]\nlisten = \":1\"\n",
        )
        .unwrap();
        let variables = [
            ("ROADSTEAD_OPS__LISTEN", ":2"),
            ("ROADSTEAD_RAFT__PROFILE", "local"),
        ];
        let args = Args {
            config: Some(file),
            bootstrap: false,
            join: vec!["a:1".to_owned(), "b:2".to_owned()],
            ops_listen: Some(":3".to_owned()),
            ..args(&dir.path().join("data"))
        };
        let config = configure(
            args,
            variables.map(|(k, v)| (k.into(), v.into())).into_iter(),
        )
        .unwrap();
        assert_eq!(
            config.entrance,
            Entrance::Join(vec!["a:1".to_owned(), "b:2".to_owned()])
        );
        assert_eq!(config.ops_listen.port(), 3);
        assert_eq!(config.profile, Profile::Local);
    }

    #[test]
    fn what_this_release_cannot_do_safely_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = Some("192.0.2.1:5010".to_owned());
        assert!(
            refusal(Args {
                peer_listen: open,
                bootstrap: false,
                join: vec!["a:1".to_owned()],
                ..args(dir.path())
            })
            .contains("has no certificate")
        );
        assert!(
            refusal(Args {
                bootstrap: false,
                ..args(dir.path())
            })
            .contains("neither")
        );
        let both = Args {
            join: vec!["a:1".to_owned()],
            ..args(dir.path())
        };
        assert!(refusal(both).contains("both bootstrap and join"));
        let wrong = Some("nowhere".to_owned());
        assert!(
            refusal(Args {
                ops_listen: wrong,
                ..args(dir.path())
            })
            .contains("--ops-listen")
        );
    }
}
