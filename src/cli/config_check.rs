//! `roadstead config check FILE`: what `serve` would say of a configuration, without starting
//! anything.

use super::output;
use super::output::Failure;
use super::output::Format;
use super::serve::refuse;
use crate::config::Draft;
use crate::config::limits;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check a configuration file: each mistake with its line and the nearest key
    Check { file: PathBuf },
}

pub fn run(command: Command, format: Format) -> Result<(), Failure> {
    let Command::Check { file } = command;
    let content = std::fs::read_to_string(&file).map_err(|error| {
        let message = format!("read {}: {error}", file.display());
        Failure::refused(message, "name a file that exists and can be read")
    })?;
    let mut draft = Draft::default();
    let mut problems = draft.add_file(&file, &content);
    problems.extend(draft.add_environment(std::env::vars_os()));
    if !problems.is_empty() {
        return Err(refuse(&problems));
    }
    let place = file.display().to_string();
    let config = draft.check(&place).map_err(|problems| refuse(&problems))?;
    let notes = limits(&config);
    match format {
        Format::Json => output::json(&serde_json::json!({"valid": true, "notes": notes})),
        Format::Table => {
            let mut text = format!("{place}: good\n");
            for note in notes {
                text.push_str(&format!("note: serve refuses this for now: {note}\n"));
            }
            output::print(&text)
        }
    }
}
