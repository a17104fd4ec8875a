//! What a `dev` cluster consists of, decided before anything starts: regions, ports, commands.
//! What cannot work is refused here, with nothing left behind.

use super::Args;
use crate::cli::output::Failure;
use crate::login::PASSWORD_FILE;
use crate::login::kept_password;
use secrecy::SecretString;
use serde::Deserialize;
use serde::Serialize;
use std::fs::File;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

const REGIONS: u16 = 3;
const BASE_PORT: u16 = 5000;

pub struct Plan {
    pub executable: PathBuf,
    /// Absolute, so that the commands work from anywhere.
    pub dir: PathBuf,
    pub regions: Vec<Region>,
    /// Of a cluster with accounts: the first admin.
    pub admin: Option<Admin>,
    /// Held until `dev` ends: two on the same data would fight over it.
    _lock: File,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub password: SecretString,
    pub file: PathBuf,
}

pub struct Region {
    pub name: String,
    pub registry: u16,
    pub peer: u16,
    pub ops: u16,
    /// Works by hand, and outlives `dev`.
    pub command: Vec<String>,
    pub log: PathBuf,
    pub data_dir: PathBuf,
}

/// What the data was made with, in DIR/dev.json. Other numbers would be another cluster: its
/// members know each other by their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    regions: u16,
    base_port: u16,
}

impl Plan {
    pub async fn make(args: &Args) -> Result<Plan, Failure> {
        let executable = std::env::current_exe()
            .map_err(|error| Failure::failed("find this executable", &error))?;
        let dir = claim_dir(&args.data_dir)?;
        let lock = lock(&dir)?;
        let made = settle(args, &dir)?;
        wait_for_ports(made).await?;
        if args.fresh {
            remove_regions(&dir)?;
        }
        let text = serde_json::to_string(&made).map_err(|e| Failure::failed("write JSON", &e))?;
        let file = dir.join("dev.json");
        std::fs::write(&file, text)
            .map_err(|error| Failure::failed(&format!("write {}", file.display()), &error))?;
        let admin = match args.auth {
            true => Some(admin(&dir)?),
            false => None,
        };
        let regions = (0..made.regions)
            .map(|i| Region::new(&executable, &dir, made, i, args.auth))
            .collect();
        Ok(Plan {
            executable,
            dir,
            regions,
            admin,
            _lock: lock,
        })
    }

    #[cfg(test)]
    pub fn for_test(dir: &Path, regions: u16) -> Plan {
        let made = Made {
            regions,
            base_port: 5000,
        };
        let executable = PathBuf::from("/usr/bin/roadstead");
        Plan {
            regions: (0..regions)
                .map(|i| Region::new(&executable, dir, made, i, false))
                .collect(),
            admin: None,
            executable,
            dir: dir.to_owned(),
            _lock: lock(dir).expect("a directory of the test's own"),
        }
    }

    /// A `dev` command on this cluster, as one types it.
    pub fn own_command(&self, words: &str) -> String {
        format!(
            "{} dev {words} --data-dir {}",
            quoted(&self.executable),
            quoted(&self.dir)
        )
    }
}

impl Region {
    fn new(executable: &Path, dir: &Path, made: Made, i: u16, accounts: bool) -> Region {
        let name = format!("r{}", i + 1);
        let port = |offset| made.base_port + offset + i;
        let (registry, peer, ops) = (port(0), port(10), port(20));
        let data_dir = dir.join(&name);
        let mut command = vec![
            executable.display().to_string(),
            "serve".to_owned(),
            format!("--region={name}"),
            format!("--data-dir={}", data_dir.display()),
            format!("--registry-listen=127.0.0.1:{registry}"),
            format!("--peer-listen=127.0.0.1:{peer}"),
            format!("--ops-listen=127.0.0.1:{ops}"),
            "--raft-profile=local".to_owned(),
        ];
        if !accounts {
            command.insert(2, "--no-auth".to_owned());
        }
        command.push(match i {
            0 => "--bootstrap".to_owned(),
            _ => format!("--join=127.0.0.1:{}", made.base_port + 10),
        });
        Region {
            name,
            registry,
            peer,
            ops,
            command,
            log: data_dir.join("log"),
            data_dir,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.registry)
    }
}

/// The password is made at the first start, and kept for the next ones.
fn admin(dir: &Path) -> Result<Admin, Failure> {
    let file = dir.join(PASSWORD_FILE);
    let password = kept_password(&file);
    let named = format!("keep the password of the first admin in {}", file.display());
    let password = password.map_err(|error| Failure::failed(&named, &error))?;
    Ok(Admin { password, file })
}

fn claim_dir(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |error| Failure::failed(&format!("use the directory {}", path.display()), &error);
    std::fs::create_dir_all(path).map_err(failed)?;
    let dir = path.canonicalize().map_err(failed)?;
    let is_ours = dir.join("dev.json").exists() || dir.join("dev.lock").exists();
    let is_empty = std::fs::read_dir(&dir).map_err(failed)?.next().is_none();
    if is_ours || is_empty {
        return Ok(dir);
    }
    Err(Failure::refused(
        format!("{} holds files, but not of `roadstead dev`", dir.display()),
        "name an empty directory, or one that does not exist, with --data-dir DIR",
    ))
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("dev.lock");
    let failed = |error| Failure::failed(&format!("lock {}", path.display()), &error);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::refused(
            format!(
                "another `roadstead dev` runs on the data in {}",
                dir.display()
            ),
            "stop it, or give this one another --data-dir and --base-port",
        )),
    }
}

/// What was asked for, else what the data was made with, else the defaults.
fn settle(args: &Args, dir: &Path) -> Result<Made, Failure> {
    let old = if args.fresh { None } else { read_made(dir)? };
    let (regions, base_port) = old.map_or((REGIONS, BASE_PORT), |o| (o.regions, o.base_port));
    let made = Made {
        regions: args.regions.unwrap_or(regions),
        base_port: args.base_port.unwrap_or(base_port),
    };
    match old {
        Some(old) if old != made => Err(Failure::refused(
            format!(
                "the data in {} is of a cluster with --regions {} --base-port {}",
                dir.display(),
                old.regions,
                old.base_port
            ),
            "use these numbers, delete the data with --fresh, or name another --data-dir",
        )),
        _ => Ok(made),
    }
}

fn read_made(dir: &Path) -> Result<Option<Made>, Failure> {
    let file = dir.join("dev.json");
    match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::failed(&format!("read {}", file.display()), &error)),
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|_| {
            Failure::refused(
                format!("{} is not what `roadstead dev` writes", file.display()),
                "delete the data with --fresh, or name another --data-dir",
            )
        }),
    }
}

/// Only what `dev` made: its regions, their first password, and what it prints to try.
fn remove_regions(dir: &Path) -> Result<(), Failure> {
    let password = dir.join(PASSWORD_FILE);
    if password.exists() {
        std::fs::remove_file(&password)
            .map_err(|error| Failure::failed(&format!("delete {}", password.display()), &error))?;
    }
    let names = (1..=7)
        .map(|i| format!("r{i}"))
        .chain(["sample", "pulled"].map(str::to_owned));
    for name in names {
        let path = dir.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::failed(
                    &format!("delete {}", path.display()),
                    &error,
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Children of a `dev` that was killed need a moment to end.
async fn wait_for_ports(made: Made) -> Result<(), Failure> {
    let patience = Instant::now() + Duration::from_secs(1);
    loop {
        let Some((port, use_)) = busy_port(made) else {
            return Ok(());
        };
        if Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let free = (1..100)
            .map(|step| Made {
                base_port: made.base_port.saturating_add(step * 100),
                ..made
            })
            .find(|other| other.base_port < 65_000 && busy_port(*other).is_none());
        let advice = free.map_or("PORT".to_owned(), |free| free.base_port.to_string());
        return Err(Failure::refused(
            format!("port {port} ({use_}) is in use"),
            format!("stop what uses it, or try --base-port {advice}"),
        ));
    }
}

fn busy_port(made: Made) -> Option<(u16, String)> {
    for (offset, listener) in [(0, "registry"), (10, "peers"), (20, "ops")] {
        for i in 0..made.regions {
            let port = made.base_port + offset + i;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
                return Some((port, format!("{listener} of r{}", i + 1)));
            }
        }
    }
    None
}

/// For a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, regions: Option<u16>, base_port: u16) -> Args {
        Args {
            regions,
            base_port: Some(base_port),
            data_dir: dir.to_owned(),
            fresh: false,
            auth: false,
            command: None,
        }
    }

    /// Of a range that nothing else is likely to use; each test has its own.
    fn free_base(from: u16) -> u16 {
        let free = |base| {
            busy_port(Made {
                regions: 7,
                base_port: base,
            })
            .is_none()
        };
        (from..from + 900)
            .step_by(30)
            .find(|base| free(*base))
            .expect("free ports")
    }

    async fn refusal(args: &Args) -> String {
        match Plan::make(args).await {
            Ok(_) => panic!("{args:?} was accepted"),
            Err(failure) => failure.message().to_owned(),
        }
    }

    #[tokio::test]
    async fn each_region_has_its_ports_and_a_whole_command() {
        let dir = tempfile::tempdir().unwrap();
        let base = free_base(31_000);
        let plan = Plan::make(&args(dir.path(), Some(2), base)).await.unwrap();
        let second = &plan.regions[1];
        assert_eq!(
            (second.registry, second.peer, second.ops),
            (base + 1, base + 11, base + 21)
        );
        assert_eq!(plan.regions[0].command.last().unwrap(), "--bootstrap");
        assert_eq!(
            *second.command.last().unwrap(),
            format!("--join=127.0.0.1:{}", base + 10)
        );
        assert!(Path::new(&second.command[0]).is_absolute());
    }

    #[tokio::test]
    async fn old_data_is_kept_and_only_runs_as_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let base = free_base(32_000);
        drop(Plan::make(&args(dir.path(), Some(2), base)).await.unwrap());
        assert!(
            refusal(&args(dir.path(), Some(3), base))
                .await
                .contains("--regions 2")
        );
        let again = Plan::make(&args(dir.path(), None, base)).await.unwrap();
        assert_eq!(again.regions.len(), 2);
        assert!(
            refusal(&args(dir.path(), None, base))
                .await
                .contains("another `roadstead dev`")
        );
    }

    #[tokio::test]
    async fn a_busy_port_and_a_strange_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = free_base(33_000);
        let _busy = TcpListener::bind((Ipv4Addr::LOCALHOST, base + 11)).unwrap();
        let told = refusal(&args(dir.path(), Some(2), base)).await;
        assert_eq!(told, format!("port {} (peers of r2) is in use", base + 11));
        let strange = tempfile::tempdir().unwrap();
        std::fs::write(strange.path().join("thesis.tex"), "").unwrap();
        assert!(
            refusal(&args(strange.path(), Some(1), base))
                .await
                .contains("holds files")
        );
    }

    #[test]
    fn a_path_is_quoted_when_a_shell_would_take_it_apart() {
        assert_eq!(quoted(Path::new("/a/b-c")), "/a/b-c");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
