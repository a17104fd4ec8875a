//! Whoever runs a client: a home of their own, where the client keeps what it logged in with, so
//! that nothing of the machine's is read or written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub struct User {
    home: TempDir,
    /// `NAME:SECRET`, for a client that takes it with each command.
    pub pair: Option<String>,
}

thread_local! {
    static NOW: RefCell<Option<Settings>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct Settings {
    home: PathBuf,
    pair: Option<String>,
}

impl User {
    /// Who knows no password.
    pub fn new() -> User {
        let user = User {
            home: tempfile::tempdir().expect("temp dir"),
            pair: None,
        };
        std::fs::create_dir(user.docker_config()).expect("create directory");
        user.write(&json!({}));
        user
    }

    /// Who has logged in before, as docker keeps it; no server was asked.
    pub fn knowing(registry: &str, name: &str, secret: &str) -> User {
        let mut user = User::new();
        let pair = format!("{name}:{secret}");
        user.write(&json!({"auths": {registry: {"auth": STANDARD.encode(&pair)}}}));
        user.pair = Some(pair);
        user
    }

    /// The same, where one registry has the address that another had.
    pub fn moved(&self, from: &str, to: &str) -> User {
        let mut user = User::new();
        let config = self.config().replace(from, to);
        user.write(&serde_json::from_str(&config).expect("JSON"));
        user.pair.clone_from(&self.pair);
        user
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The directory of docker, whose file the others read too.
    pub fn docker_config(&self) -> PathBuf {
        self.home.path().join(".docker")
    }

    pub fn write(&self, config: &Value) {
        let file = self.docker_config().join("config.json");
        std::fs::write(file, config.to_string()).expect("write config.json");
    }

    pub fn config(&self) -> String {
        let file = self.docker_config().join("config.json");
        std::fs::read_to_string(file).expect("read config.json")
    }

    /// `work`, whose commands this user runs.
    pub fn runs<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Back(Option<Settings>);
        impl Drop for Back {
            fn drop(&mut self) {
                NOW.set(self.0.take());
            }
        }
        let settings = Settings {
            home: self.home().to_owned(),
            pair: self.pair.clone(),
        };
        let _back = Back(NOW.replace(Some(settings)));
        work()
    }
}

/// In the environment of a command: where who runs it keeps credentials.
pub fn environment() -> Vec<(&'static str, OsString)> {
    let Some(user) = NOW.with_borrow(Clone::clone) else {
        return Vec::new();
    };
    let file = user.home.join(".docker/config.json");
    [
        ("HOME", user.home.clone()),
        ("DOCKER_CONFIG", user.home.join(".docker")),
        ("REGISTRY_AUTH_FILE", file.clone()),
        ("HELM_REGISTRY_CONFIG", file),
        ("HELM_CACHE_HOME", user.home.join("helm")),
        ("HELM_CONFIG_HOME", user.home.join("helm")),
        ("HELM_DATA_HOME", user.home.join("helm")),
    ]
    .map(|(name, path)| (name, path.into_os_string()))
    .into()
}

/// `--user NAME:SECRET` for a client that keeps nothing.
pub fn pair(command: &mut Command) -> &mut Command {
    if let Some(pair) = NOW.with_borrow(|now| now.as_ref()?.pair.clone()) {
        command.args(["--user", &pair]);
    }
    command
}
