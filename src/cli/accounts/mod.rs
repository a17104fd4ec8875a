//! `roadstead user`, `token`, `key`, `ci` and `group`: who there is and what they may do, changed
//! everywhere at once. The server judges all of it.

mod words;

pub use words::CiSystem;
pub use words::GroupCommand;
pub use words::Key;
pub use words::Token;
pub use words::User;

use super::client::Client;
use super::client::Connection;
use super::client::ask_password;
use super::docker_config;
use super::login::grants;
use super::output;
use super::output::Failure;
use super::output::Format;
use crate::api::types::Account;
use crate::api::types::Accounts;
use crate::api::types::Changed;
use crate::api::types::Ci;
use crate::api::types::GrantOf;
use crate::api::types::Groups;
use crate::api::types::Made;
use crate::api::types::NewAccount;
use crate::api::types::NewGroup;
use crate::api::types::NewPassword;
use crate::api::types::Rotation;
use reqwest::Method;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::IsTerminal;
use std::time::Duration;
use words::Give;
use words::New;
use words::Rotate;

/// The server holds a write through an election.
const WAIT: Duration = Duration::from_secs(40);

/// A command with the server that it goes to.
pub struct Run {
    client: Client,
    format: Format,
}

impl Run {
    pub fn new(connection: Connection, format: Format) -> Result<Run, Failure> {
        Ok(Run {
            client: connection.open()?,
            format,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_value(body).map_err(|e| Failure::failed("write JSON", &e))?;
        self.client.call(method, path, Some(&body), WAIT).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.client.call(Method::DELETE, path, None, WAIT).await
    }

    fn tell(&self, value: &impl Serialize, words: &str) -> Result<(), Failure> {
        match self.format {
            Format::Json => output::json(value),
            Format::Table => output::print(&format!("{words}\n")),
        }
    }

    /// A secret that is shown once: alone on stdout where somebody reads it by program.
    fn show_secret(&self, made: &Made, docker_config: bool) -> Result<(), Failure> {
        let secret = made.secret.clone().unwrap_or_default();
        if docker_config {
            let secret = SecretString::from(secret);
            let servers = self.client.servers();
            return output::json(&docker_config::document(servers, &made.name, &secret));
        }
        let words = format!(
            "name    {}\nsecret  {secret}\n\nThe secret is not shown again. docker login -u {} takes it as the password;\nroadstead takes it as --token.",
            made.name, made.name
        );
        self.tell(made, &words)
    }

    pub async fn user(self, command: User) -> Result<(), Failure> {
        match command {
            User::Add {
                name,
                new,
                groups,
                new_password_stdin,
            } => {
                let password = new_password(new_password_stdin)?;
                let body = NewAccount {
                    kind: "user".to_owned(),
                    password: Some(password.expose_secret().to_owned()),
                    groups,
                    ..new_account(&new)
                };
                let made: Made = self.call(Method::PUT, &account(&name)?, &body).await?;
                self.tell(&made, &format!("{name} may log in, in every region."))
            }
            User::List => self.list("user").await,
            User::Remove { name } => {
                self.remove(&name, "is gone, and all that it was logged in to")
                    .await
            }
            User::Password {
                name,
                new_password_stdin,
            } => {
                let password = new_password(new_password_stdin)?;
                let body = NewPassword {
                    password: password.expose_secret().to_owned(),
                };
                let path = format!("{}/password", account(&name)?);
                let made: Made = self.call(Method::PUT, &path, &body).await?;
                self.tell(&made, &format!("{name} has a new password."))
            }
            User::Grant(give) => self.give("accounts", &give).await,
            User::Revoke { name, pattern } => self.take("accounts", &name, &pattern).await,
        }
    }

    pub async fn token(self, command: Token) -> Result<(), Failure> {
        match command {
            Token::Create {
                name,
                new,
                docker_config,
            } => {
                let body = NewAccount {
                    kind: "token".to_owned(),
                    ..new_account(&new)
                };
                let made: Made = self.call(Method::PUT, &account(&name)?, &body).await?;
                self.show_secret(&made, docker_config)
            }
            Token::Rotate(rotate) => self.rotate(&rotate).await,
            Token::List => self.list("token").await,
            Token::Revoke { name } => self.remove(&name, "is good for nothing any more").await,
            Token::Grant(give) => self.give("accounts", &give).await,
            Token::Ungrant { name, pattern } => self.take("accounts", &name, &pattern).await,
        }
    }

    pub async fn key(self, command: Key) -> Result<(), Failure> {
        match command {
            Key::Create {
                name,
                owner,
                new,
                docker_config,
            } => {
                let name = name
                    .unwrap_or_else(|| format!("key-{}", hex::encode(rand::random::<[u8; 6]>())));
                let body = NewAccount {
                    kind: "key".to_owned(),
                    owner,
                    ..new_account(&new)
                };
                let made: Made = self.call(Method::PUT, &account(&name)?, &body).await?;
                self.show_secret(&made, docker_config)
            }
            Key::Rotate(rotate) => self.rotate(&rotate).await,
            Key::List => self.list("key").await,
            Key::Revoke { name } => self.remove(&name, "is good for nothing any more").await,
        }
    }

    pub async fn ci(self, command: CiSystem) -> Result<(), Failure> {
        match command {
            CiSystem::Add {
                name,
                issuer,
                audience,
                claims,
                jwks,
                new,
            } => {
                let jwks = match jwks {
                    Some(path) => Some(std::fs::read_to_string(&path).map_err(|error| {
                        Failure::failed(&format!("read {}", path.display()), &error)
                    })?),
                    None => None,
                };
                let ci = Ci {
                    issuer,
                    audience,
                    claims: pairs(&claims)?,
                    jwks,
                };
                let body = NewAccount {
                    kind: "ci".to_owned(),
                    ci: Some(ci),
                    ..new_account(&new)
                };
                let made: Made = self.call(Method::PUT, &account(&name)?, &body).await?;
                self.tell(
                    &made,
                    &format!(
                        "Jobs of {name} log in as user oidc, with their token as the password."
                    ),
                )
            }
            CiSystem::List => self.list("ci").await,
            CiSystem::Remove { name } => self.remove(&name, "is trusted no longer").await,
        }
    }

    pub async fn group(self, command: GroupCommand) -> Result<(), Failure> {
        match command {
            GroupCommand::Add { name, grants } => {
                let body = NewGroup {
                    grants: grants.into_iter().map(for_ever).collect(),
                };
                let made: Changed = self
                    .call(
                        Method::PUT,
                        &format!("/api/v1/groups/{}", word(&name)?),
                        &body,
                    )
                    .await?;
                self.tell(&made, &format!("Group {name} is there; take users in with: roadstead group join {name} USER"))
            }
            GroupCommand::List => self.list_groups().await,
            GroupCommand::Remove { name } => {
                let made: Changed = self
                    .delete(&format!("/api/v1/groups/{}", word(&name)?))
                    .await?;
                self.tell(&made, &format!("Group {name} is gone."))
            }
            GroupCommand::Join { group, member } => {
                let path = format!(
                    "/api/v1/groups/{}/members/{}",
                    word(&group)?,
                    word(&member)?
                );
                let made: Changed = self.client.call(Method::PUT, &path, None, WAIT).await?;
                self.tell(&made, &format!("{member} is in {group}."))
            }
            GroupCommand::Leave { group, member } => {
                let path = format!(
                    "/api/v1/groups/{}/members/{}",
                    word(&group)?,
                    word(&member)?
                );
                let made: Changed = self.delete(&path).await?;
                self.tell(&made, &format!("{member} is not in {group} any more."))
            }
            GroupCommand::Grant(give) => self.give("groups", &give).await,
            GroupCommand::Revoke { name, pattern } => self.take("groups", &name, &pattern).await,
        }
    }

    async fn give(&self, of: &str, give: &Give) -> Result<(), Failure> {
        let body = GrantOf {
            grant: give.grant.clone(),
            expires_in_seconds: seconds(give.expires),
        };
        let path = format!("/api/v1/{of}/{}/grants", word(&give.name)?);
        let made: Changed = self.call(Method::PUT, &path, &body).await?;
        self.tell(
            &made,
            &format!("{} has {}, in every region.", give.name, give.grant),
        )
    }

    async fn take(&self, of: &str, name: &str, pattern: &str) -> Result<(), Failure> {
        let encoded: String = form_urlencoded::byte_serialize(pattern.as_bytes()).collect();
        let path = format!("/api/v1/{of}/{}/grants?pattern={encoded}", word(name)?);
        let made: Changed = self.delete(&path).await?;
        self.tell(
            &made,
            &format!("{name} has no grant for {pattern} any more."),
        )
    }

    async fn remove(&self, name: &str, words: &str) -> Result<(), Failure> {
        let made: Made = self.delete(&account(name)?).await?;
        self.tell(&made, &format!("{name} {words}."))
    }

    async fn rotate(&self, how: &Rotate) -> Result<(), Failure> {
        let body = Rotation {
            keep_old_seconds: seconds(how.keep_old),
            expires_in_seconds: seconds(how.expires),
        };
        let path = format!("{}/rotate", account(&how.name)?);
        let made: Made = self.call(Method::POST, &path, &body).await?;
        self.show_secret(&made, how.docker_config)
    }

    async fn list(&self, kind: &str) -> Result<(), Failure> {
        let mut found: Accounts = self.client.get("/api/v1/accounts", WAIT).await?;
        found.accounts.retain(|account| account.kind == kind);
        if self.format == Format::Json {
            return output::json(&found);
        }
        if found.accounts.is_empty() {
            return output::print("There are none that you may see.\n");
        }
        let third = match kind {
            "user" => "GROUPS",
            "key" => "ACTS AS",
            "ci" => "ISSUER",
            _ => "SECRETS",
        };
        let own = |account: &Account| match kind {
            "user" => account.groups.join(" "),
            "key" => account.owner.clone().unwrap_or_default(),
            "ci" => account
                .ci
                .as_ref()
                .map_or(String::new(), |ci| ci.issuer.clone()),
            _ => account.secrets.to_string(),
        };
        let header = ["NAME", "GRANTS", third, "EXPIRES", "LAST USE"];
        let rows = found.accounts.iter().map(|account| {
            let all = account.kind == "key" && account.grants.is_empty();
            let granted = if all {
                "all of its user's".to_owned()
            } else {
                grants(&account.grants)
            };
            let mut cells = vec![account.name.clone(), granted, own(account)];
            cells.push(
                account
                    .expires_at_ms
                    .map_or("never".to_owned(), output::time),
            );
            cells.push(account.used_at_ms.map_or("never".to_owned(), output::time));
            cells
        });
        output::print(&output::table(&header, rows.collect()))
    }

    async fn list_groups(&self) -> Result<(), Failure> {
        let found: Groups = self.client.get("/api/v1/groups", WAIT).await?;
        if self.format == Format::Json {
            return output::json(&found);
        }
        if found.groups.is_empty() {
            return output::print("There are none that you may see.\n");
        }
        let rows = found.groups.iter().map(|group| {
            vec![
                group.name.clone(),
                grants(&group.grants),
                group.members.join(" "),
            ]
        });
        output::print(&output::table(
            &["NAME", "GRANTS", "MEMBERS"],
            rows.collect(),
        ))
    }
}

fn seconds(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_secs())
}

fn for_ever(grant: String) -> GrantOf {
    GrantOf {
        grant,
        expires_in_seconds: None,
    }
}

fn new_account(new: &New) -> NewAccount {
    NewAccount {
        grants: new.grants.iter().cloned().map(for_ever).collect(),
        expires_in_seconds: seconds(new.expires),
        ..NewAccount::default()
    }
}

/// A name as it can stand in an address; the server judges the rest.
fn word(name: &str) -> Result<String, Failure> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._@+-".contains(&b);
    match !name.is_empty() && name.bytes().all(fits) {
        true => Ok(name.to_owned()),
        false => Err(Failure::refused(
            format!("{name:?} is not a name"),
            "names are of a-z, A-Z, 0-9 and . _ @ + -",
        )),
    }
}

fn account(name: &str) -> Result<String, Failure> {
    Ok(format!("/api/v1/accounts/{}", word(name)?))
}

fn pairs(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            let next = "write it as --claim repository=acme/app";
            return Err(Failure::refused(
                format!("{text:?} is not NAME=VALUE"),
                next,
            ));
        };
        if pairs.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::refused(
                format!("claim {name} is named twice"),
                "name each once",
            ));
        }
    }
    Ok(pairs)
}

fn new_password(from_stdin: bool) -> Result<SecretString, Failure> {
    if from_stdin {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        read.map_err(|error| Failure::failed("read the new password", &error))?;
        return Ok(line.trim_end_matches(['\n', '\r']).to_owned().into());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(
            "there is nobody to ask for the new password",
            "give it on stdin with --new-password-stdin",
        ));
    }
    let first = ask_password("New password: ")?;
    let second = ask_password("Again: ")?;
    match first.expose_secret() == second.expose_secret() {
        true => Ok(first),
        false => Err(Failure::refused(
            "the two are not the same",
            "type the same password twice",
        )),
    }
}
