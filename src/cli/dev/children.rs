//! The processes of the regions: started, signalled, and reaped when they end.
//!
//! A process is signalled only while it has not been reaped here, so that its number cannot
//! belong to another.

use super::PARENT;
use super::control::RegionState;
use super::plan::Plan;
use super::plan::Region;
use crate::cli::output::Failure;
use crate::login::PASSWORD_VARIABLE;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use rustix::process::Pid;
use rustix::process::Signal;
use secrecy::ExposeSecret;
use std::fs::File;
use std::io;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// For a node to finish its requests and hand over.
const GRACE: Duration = Duration::from_secs(10);

pub struct Children<'a> {
    plan: &'a Plan,
    /// Of each region, while its process has not been reaped.
    pids: Vec<Option<u32>>,
    /// Of each region, for those who wait for its process to do something before it ends.
    gone: Vec<CancellationToken>,
    ends: FuturesUnordered<LocalBoxFuture<'static, (usize, io::Result<ExitStatus>)>>,
}

/// A region whose process has ended.
pub struct End {
    pub region: usize,
    pub pid: u32,
    pub status: String,
}

impl<'a> Children<'a> {
    pub fn new(plan: &'a Plan) -> Children<'a> {
        let regions = plan.regions.len();
        Children {
            plan,
            pids: vec![None; regions],
            gone: vec![CancellationToken::new(); regions],
            ends: FuturesUnordered::new(),
        }
    }

    pub fn pid(&self, region: usize) -> Option<u32> {
        self.pids[region]
    }

    /// Ends with the process that the region has now.
    pub fn gone(&self, region: usize) -> CancellationToken {
        self.gone[region].clone()
    }

    pub fn start(&mut self, i: usize) -> Result<u32, Failure> {
        let region = &self.plan.regions[i];
        let failed = |error| Failure::failed(&format!("start {}", region.name), &error);
        let log = open_log(region).map_err(failed)?;
        let mut command = Command::new(&region.command[0]);
        if let Some(admin) = &self.plan.admin {
            command.env(PASSWORD_VARIABLE, admin.password.expose_secret());
        }
        let mut child = command
            .args(&region.command[1..])
            .env(PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().ok_or_else(|| {
            Failure::limit(
                format!("{} ended at once", region.name),
                "look into its log",
            )
        })?;
        self.pids[i] = Some(pid);
        self.gone[i] = CancellationToken::new();
        self.ends
            .push(Box::pin(async move { (i, child.wait().await) }));
        Ok(pid)
    }

    /// The next process to end; never, while none runs.
    pub async fn ended(&mut self) -> End {
        let Some((region, status)) = self.ends.next().await else {
            return std::future::pending().await;
        };
        let pid = self.pids[region].take().unwrap_or_default();
        self.gone[region].cancel();
        let status = match status {
            Ok(status) => status.to_string(),
            Err(error) => format!("status unknown: {error}"),
        };
        End {
            region,
            pid,
            status,
        }
    }

    pub fn kill(&self, region: usize) {
        self.signal(region, Signal::KILL);
    }

    fn signal(&self, region: usize, signal: Signal) {
        let pid = self.pids[region]
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        let Some(pid) = pid else { return };
        if let Err(error) = rustix::process::kill_process(pid, signal) {
            tracing::debug!(%error, "the process ended before its signal");
        }
    }

    /// Lets every process end by itself, and ends those that do not.
    pub async fn stop(mut self) {
        for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
            for region in 0..self.pids.len() {
                self.signal(region, signal);
            }
            let all = async {
                while self.pids.iter().any(Option::is_some) {
                    self.ended().await;
                }
            };
            if tokio::time::timeout(patience, all).await.is_ok() {
                return;
            }
        }
    }

    pub fn states(&self) -> Vec<RegionState> {
        let regions = self.plan.regions.iter().zip(&self.pids);
        regions
            .map(|(region, pid)| RegionState::new(region, *pid))
            .collect()
    }

    /// The end of a region's log, for whoever must know why it ended.
    pub fn last_words(&self, region: usize) -> String {
        let log = &self.plan.regions[region].log;
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

fn open_log(region: &Region) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(dir) = region.log.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    File::options().create(true).append(true).open(&region.log)
}
