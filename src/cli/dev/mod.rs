//! `roadstead dev`: a cluster on this machine, one child process for each region. The children
//! are ordinary `serve` processes, each started with a command that works by hand as well.
//!
//! They end however this process ends: the kernel kills them when the thread that started them
//! is gone, so they are all started from the main thread, which runs until the end.

mod children;
mod control;
mod event;
mod plan;
mod ready;
mod run;
mod tour;

use super::output;
use super::output::Failure;
use super::output::Format;
use std::path::PathBuf;

const DEFAULT_DIR: &str = "./.roadstead-dev";

/// Set for the children: the process that they end with.
const PARENT: &str = "ROADSTEAD_DEV_PARENT";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many regions, 1 to 7 [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=7))]
    regions: Option<u16>,
    /// First port; the registries are on it and the next ones, peers on +10, ops on +20 [default: 5000]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_500))]
    base_port: Option<u16>,
    /// Where the regions keep their data: the option of all commands.
    #[arg(skip = PathBuf::from(DEFAULT_DIR))]
    pub data_dir: PathBuf,
    /// Delete the data of an earlier run first
    #[arg(long)]
    fresh: bool,
    /// Run with accounts
    #[arg(long)]
    auth: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The regions and their processes
    Status,
    /// End a region at once, as a power cut would; it stays down
    Kill { region: String },
    /// Start a region again that is down
    Start { region: String },
}

pub async fn run(args: Args, format: Format) -> Result<(), Failure> {
    let request = match args.command {
        None => return run::run(args, format).await,
        Some(Command::Status) => control::Request::Status,
        Some(Command::Kill { region }) => control::Request::Kill { region },
        Some(Command::Start { region }) => control::Request::Start { region },
    };
    let state = control::ask(&args.data_dir, &request).await?;
    match format {
        Format::Json => output::json(&state),
        Format::Table => output::print(&state.render()),
    }
}

/// In a child of `dev`: asks the kernel to end this process with its parent. Called before there
/// is any other thread.
pub fn end_with_parent() -> Result<(), Failure> {
    let Some(parent) = std::env::var_os(PARENT) else {
        return Ok(());
    };
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill)
        .map_err(|error| Failure::failed("ask to be ended with the parent process", &error))?;
    // It may have ended before the kernel was asked.
    let actual = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if actual.is_some_and(|actual| parent == *actual) {
        return Ok(());
    }
    Err(Failure::limit(
        format!("the `roadstead dev` that started this process has ended ({PARENT})"),
        "start it again",
    ))
}
