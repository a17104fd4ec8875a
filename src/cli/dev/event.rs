//! What `dev` tells: with `-o json` one line per event, else words for whoever sits before it.

use super::control::RegionState;
use super::plan::Plan;
use super::tour;
use crate::cli::output;
use crate::cli::output::Failure;
use crate::cli::output::Format;
use serde::Serialize;

/// Who may do everything, in a cluster with accounts.
#[derive(Serialize)]
pub struct Admin<'a> {
    pub user: &'a str,
    pub password: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// Every region votes, one leads, and a test proposal is applied everywhere.
    Ready {
        regions: &'a [RegionState],
        #[serde(skip_serializing_if = "Option::is_none")]
        admin: Option<Admin<'a>>,
    },
    /// Its process has ended, whoever ended it.
    RegionDown {
        name: &'a str,
        pid: u32,
        status: &'a str,
    },
    /// It answers again.
    RegionUp { name: &'a str, pid: u32 },
}

impl Event<'_> {
    pub fn tell(&self, plan: &Plan, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => output::json(self),
            Format::Table => output::print(&self.words(plan)),
        }
    }

    fn words(&self, plan: &Plan) -> String {
        match self {
            Event::Ready { .. } => tour::text(plan),
            Event::RegionDown { name, status, .. } => {
                let start = plan.own_command(&format!("start {name}"));
                format!("{name} is down ({status}); bring it back with: {start}\n")
            }
            Event::RegionUp { name, .. } => format!("{name} is up again\n"),
        }
    }
}
