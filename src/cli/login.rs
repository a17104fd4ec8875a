//! `roadstead login`, `logout` and `whoami`.

use super::client::Connection;
use super::client::Login;
use super::client::ask_password;
use super::docker_config;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::Grant;
use crate::api::types::WhoAmI;
use std::io::IsTerminal;
use std::io::Write;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

/// Checks the credential at the server before it is kept.
pub async fn login(connection: Connection, format: Format) -> Result<(), Failure> {
    if connection.data_dir.is_some() {
        return Err(Failure::refused(
            "--data-dir needs no login",
            "name a server with --server URL, or leave login out",
        ));
    }
    let servers = connection.servers()?;
    let (name, secret) = match connection.login()? {
        Login::User { name, password } => (name, password),
        Login::Token(_) => {
            return Err(Failure::refused(
                "a token is kept with its name",
                "use --user NAME, with the token as the password",
            ));
        }
        Login::None => {
            let name = ask_name()?;
            let secret = ask_password("Password: ")?;
            (name, secret)
        }
    };
    let client = connection.open()?.with_login(Login::User {
        name: name.clone(),
        password: secret.clone(),
    });
    let me: WhoAmI = client.get("/api/v1/whoami", WAIT).await?;
    let mut kept = String::new();
    for server in &servers {
        kept = docker_config::store(server, &name, &secret)?;
    }
    match format {
        Format::Json => output::json(&me),
        Format::Table => output::print(&format!(
            "Logged in to {} as {}. The credential is kept {kept}; docker, podman and others use it too.\n",
            servers.join(", "),
            me.name
        )),
    }
}

fn ask_name() -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(
            "nobody is named",
            "name an account with --user NAME",
        ));
    }
    let failed = |error| Failure::failed("read the name", &error);
    let mut out = std::io::stderr();
    out.write_all(b"Name: ")
        .and_then(|()| out.flush())
        .map_err(failed)?;
    let mut name = String::new();
    std::io::stdin().read_line(&mut name).map_err(failed)?;
    Ok(name.trim().to_owned())
}

pub fn logout(connection: &Connection) -> Result<(), Failure> {
    for server in connection.servers()? {
        let told = match docker_config::erase(&server)? {
            true => format!("Forgot the credential for {server}.\n"),
            false => format!("There was no credential for {server}.\n"),
        };
        output::print(&told)?;
    }
    Ok(())
}

pub fn grants(grants: &[Grant]) -> String {
    let one = |grant: &Grant| format!("{}:{}", grant.pattern, grant.rights.join(","));
    grants.iter().map(one).collect::<Vec<_>>().join(" ")
}

pub async fn whoami(connection: Connection, format: Format) -> Result<(), Failure> {
    let me: WhoAmI = connection.open()?.get("/api/v1/whoami", WAIT).await?;
    if format == Format::Json {
        return output::json(&me);
    }
    let or = |text: String, none: &str| {
        if text.is_empty() {
            none.to_owned()
        } else {
            text
        }
    };
    let rows = vec![
        vec![
            "kind".to_owned(),
            me.kind.clone().unwrap_or_else(|| "no account".to_owned()),
        ],
        vec![
            "grants".to_owned(),
            or(grants(&me.grants), "none of its own"),
        ],
        vec!["groups".to_owned(), or(me.groups.join(" "), "none")],
        vec![
            "administers".to_owned(),
            or(me.administers.join(" "), "nothing"),
        ],
    ];
    output::print(&output::table(&["name", &me.name], rows))
}
