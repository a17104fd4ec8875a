//! `roadstead region`: what adding a region does to what the cluster survives, and the exact command
//! that starts it on its machine.

use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::Cancelled;
use crate::api::types::JoinInvitation;
use crate::api::types::JoinTokenRequest;
use crate::topology::RegionName;
use crate::topology::Role;
use reqwest::Method;
use std::net::SocketAddr;
use std::time::Duration;

/// The server holds a write through an election.
const WAIT: Duration = Duration::from_secs(40);
const SOMEWHERE: &str = "ADDRESS-OF-THE-NEW-MACHINE:5010";

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a join token for a new region, what it changes, and the command that starts it
    Add {
        /// Lower-case letters, digits and '-'
        region: RegionName,
        /// What it does [default: voter]
        #[arg(long, value_enum)]
        role: Option<Role>,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// How long the token is good
        #[arg(long, default_value_t = 24)]
        hours: u64,
        /// Where the other regions will reach the new node
        #[arg(long, value_name = "HOST:PORT")]
        peer_advertise: Option<String>,
        /// Its data directory, for the printed command
        #[arg(long, value_name = "DIR", default_value = "/var/lib/roadstead")]
        node_data_dir: String,
    },
    /// Take back join tokens that were printed for a region and that nobody has used
    CancelAdd { region: RegionName },
}

#[derive(serde::Serialize)]
struct Added<'a> {
    #[serde(flatten)]
    invitation: &'a JoinInvitation,
    /// Null on a dry run.
    command: Option<Vec<String>>,
}

pub async fn run(command: Command, connection: Connection, format: Format) -> Result<(), Failure> {
    let (region, role, dry_run, hours, peer_advertise, node_data_dir) = match command {
        Command::CancelAdd { region } => return cancel(&region, connection, format).await,
        Command::Add {
            region,
            role,
            dry_run,
            hours,
            peer_advertise,
            node_data_dir,
        } => (region, role, dry_run, hours, peer_advertise, node_data_dir),
    };
    let asked = JoinTokenRequest {
        role,
        hours: Some(hours),
        dry_run,
    };
    let body = serde_json::to_value(&asked)
        .map_err(|error| Failure::failed("write the request", &error))?;
    let path = format!("/api/v1/regions/{region}/join-token");
    let client = connection.open()?;
    let invitation: JoinInvitation = client.call(Method::POST, &path, Some(&body), WAIT).await?;
    let advertise = peer_advertise.as_deref().unwrap_or(SOMEWHERE);
    let command = serve(&invitation, &node_data_dir, advertise);
    match format {
        Format::Json => output::json(&Added {
            invitation: &invitation,
            command,
        }),
        Format::Table => output::print(&render(&invitation, command.as_deref(), hours)),
    }
}

async fn cancel(
    region: &RegionName,
    connection: Connection,
    format: Format,
) -> Result<(), Failure> {
    let path = format!("/api/v1/regions/{region}/join-token");
    let client = connection.open()?;
    let done: Cancelled = client.call(Method::DELETE, &path, None, WAIT).await?;
    match format {
        Format::Json => output::json(&done),
        Format::Table => output::print(&format!(
            "Join tokens for {region} that were taken back: {}\n",
            done.tokens
        )),
    }
}

/// What is to be run on the new machine.
fn serve(invitation: &JoinInvitation, data_dir: &str, advertise: &str) -> Option<Vec<String>> {
    let token = invitation.token.as_deref()?;
    // A node that has one address of its own listens on that; else on all.
    let peer_listen = match advertise.parse::<SocketAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => {
            let port = advertise.rsplit_once(':').map_or("5010", |(_, port)| port);
            format!("0.0.0.0:{port}")
        }
    };
    let role = invitation.role.to_string();
    let mut command = vec![
        "roadstead",
        "serve",
        "--data-dir",
        data_dir,
        "--region",
        &invitation.region,
        "--role",
        &role,
        "--raft-profile",
        &invitation.raft_profile,
    ];
    if invitation.role.keeps_blobs() {
        command.extend(["--registry-listen", "0.0.0.0:5000"]);
    }
    command.extend(["--peer-listen", &peer_listen, "--peer-advertise", advertise]);
    for address in &invitation.join {
        command.extend(["--join", address]);
    }
    command.extend(["--join-token", token]);
    Some(command.into_iter().map(str::to_owned).collect())
}

fn render(invitation: &JoinInvitation, command: Option<&[String]>, hours: u64) -> String {
    let JoinInvitation {
        region,
        role,
        voters,
        quorum,
        failure_tolerance: lost,
        ..
    } = invitation;
    let mut text = format!("{region} joins as {role}\n");
    let rows = [
        ("voters", voters),
        ("that must agree", quorum),
        ("that may be lost", lost),
    ];
    for (what, change) in rows {
        text += &format!("  {what:<17} {} -> {}\n", change.before, change.after);
    }
    for warning in &invitation.warnings {
        text += &format!("warning: {warning}\n");
    }
    match command {
        None => {
            text + &format!("\nnothing was changed; without --dry-run: a join token for {region}\n")
        }
        Some(command) => {
            text += &format!(
                "\nThe token in it lets in one node, as {region}, within {hours} h; keep it to yourself. On the new machine:\n\n"
            );
            text + &command.join(" ") + "\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::FromTo;

    fn invitation(token: Option<&str>) -> JoinInvitation {
        let one = FromTo {
            before: 1,
            after: 2,
        };
        JoinInvitation {
            region: "r2".to_owned(),
            role: Role::Voter,
            token: token.map(str::to_owned),
            expires_at_ms: None,
            join: vec!["192.0.2.1:5010".to_owned()],
            raft_profile: "global".to_owned(),
            voters: one,
            quorum: one,
            failure_tolerance: FromTo {
                before: 0,
                after: 0,
            },
            warnings: vec!["even".to_owned()],
        }
    }

    #[test]
    fn the_command_is_complete_when_the_address_is_known() {
        let with = serve(&invitation(Some("rsj_t")), "/d", "192.0.2.2:5010").unwrap();
        assert_eq!(
            with.join(" "),
            "roadstead serve --data-dir /d --region r2 --role voter --raft-profile global \
             --registry-listen 0.0.0.0:5000 --peer-listen 192.0.2.2:5010 --peer-advertise \
             192.0.2.2:5010 --join 192.0.2.1:5010 --join-token rsj_t"
        );
        let named = serve(&invitation(Some("t")), "/d", "r2.example:7")
            .unwrap()
            .join(" ");
        assert!(
            named.contains("--peer-listen 0.0.0.0:7 --peer-advertise r2.example:7"),
            "{named}"
        );
    }

    #[test]
    fn a_dry_run_says_what_changes_and_shows_no_token() {
        let told = render(&invitation(None), None, 24);
        assert!(told.contains("voters            1 -> 2\n"), "{told}");
        assert!(
            told.contains("warning: even\n") && told.contains("nothing was changed"),
            "{told}"
        );
        assert_eq!(serve(&invitation(None), "/d", SOMEWHERE), None);
    }
}
