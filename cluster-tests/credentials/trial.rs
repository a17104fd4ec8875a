//! A cluster with accounts and one client: what every situation stands on.

use super::clients::Client;
use crate::harness::cluster::Cluster;
use crate::harness::layouts::Layout;
use crate::harness::user::User;
use crate::harness::wait::eventually;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

/// Every tag, since a chart has a version.
const TAG: &str = "1.0.0";
/// Until every region has heard of a change of accounts.
const HEARD: Duration = Duration::from_secs(10);

pub struct Account {
    pub name: String,
    pub secret: String,
}

pub struct Trial<'a> {
    pub cluster: &'a Cluster,
    pub client: &'a dyn Client,
    /// Accounts are made in the first region. Logins and pushes go here:
    pub near: usize,
    /// Pulls come from here.
    pub far: usize,
    pub setting: &'a Setting,
    /// Who logged in at first as the robot, and where. Docker has kept a refresh token of that region;
    /// when a name leads to another one, it must be good there.
    pub early: &'a User,
    pub early_at: usize,
}

/// Made while all regions were up.
pub struct Setting {
    images: TempDir,
    pub app: Layout,
    /// May pull and push under `team` and `pub`.
    pub robot: Account,
    /// The same, with a password.
    pub person: Account,
    pub reader: Account,
    pub creator: Account,
    /// Has no right where the images are.
    pub stranger: Account,
    pub expired: Account,
    pub revoked: Account,
}

pub fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

/// Of the admin, in the first region.
pub fn call(cluster: &Cluster, method: Method, path: &str, body: &Value) -> Value {
    let request = cluster
        .client(0)
        .request(method, &format!("/api/v1/{path}"));
    wait(async {
        let answer = request.json(body).send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    })
}

/// A token with these grants.
pub fn token(cluster: &Cluster, name: &str, grants: &[&str], seconds: Option<u64>) -> Account {
    let grants: Vec<Value> = grants.iter().map(|grant| json!({"grant": grant})).collect();
    let mut body = json!({"kind": "token", "grants": grants});
    if let Some(seconds) = seconds {
        body["expires_in_seconds"] = seconds.into();
    }
    let made = call(cluster, Method::PUT, &format!("accounts/{name}"), &body);
    let made = Account {
        name: name.to_owned(),
        secret: made["secret"].as_str().expect("a secret").to_owned(),
    };
    if seconds.is_none() {
        known(cluster, &made);
    }
    made
}

async fn knows(cluster: &Cluster, i: usize, account: &Account) -> StatusCode {
    let asked = cluster
        .client(i)
        .anonymous()
        .request(Method::GET, "/api/v1/whoami")
        .bearer_auth(&account.secret);
    asked.send().await.expect("an answer").status()
}

/// Every running region has heard of it; the log brings it within moments.
pub fn known(cluster: &Cluster, account: &Account) {
    for i in (0..cluster.len()).filter(|i| cluster.is_running(*i)) {
        let what = format!("{} knows {}", cluster.name(i), account.name);
        let heard = || async { (knows(cluster, i, account).await == 200).then_some(()) };
        wait(eventually(&what, HEARD, heard));
    }
}

pub fn refused_everywhere(cluster: &Cluster, account: &Account) {
    for i in (0..cluster.len()).filter(|i| cluster.is_running(*i)) {
        let what = format!("{} refuses {}", cluster.name(i), account.name);
        let heard = || async { (knows(cluster, i, account).await == 401).then_some(()) };
        wait(eventually(&what, HEARD, heard));
    }
}

impl Setting {
    pub fn make(cluster: &Cluster) -> Setting {
        let images = tempfile::tempdir().expect("temp dir");
        let public = json!({"visibility": "public"});
        call(cluster, Method::PUT, "policies/pub", &public);
        let all = ["team/*:pull,push", "pub/*:pull,push"];
        let person = Account {
            name: "ann".to_owned(),
            secret: "a:pass word, of hers".to_owned(),
        };
        let grants: Vec<Value> = all.iter().map(|grant| json!({"grant": grant})).collect();
        let body = json!({"kind": "user", "password": person.secret, "grants": grants});
        call(cluster, Method::PUT, "accounts/ann", &body);
        let make = |name: &str, grants: &[&str]| token(cluster, name, grants, None);
        let setting = Setting {
            app: Layout::new(images.path(), "app", &["amd64"], &[5000]),
            robot: make("robot", &all),
            person,
            reader: make("reader", &["team/*:pull"]),
            creator: make("creator", &["team/*:pull,create"]),
            stranger: make("stranger", &["other/*:pull,push"]),
            expired: token(cluster, "expired", &all, Some(1)),
            revoked: make("revoked", &all),
            images,
        };
        call(cluster, Method::DELETE, "accounts/revoked", &json!({}));
        refused_everywhere(cluster, &setting.revoked);
        setting
    }

    pub fn layout(&self, name: &str) -> Layout {
        Layout::new(self.images.path(), name, &["amd64"], &[3000])
    }
}

pub fn login(client: &dyn Client, registry: &str, account: &Account) -> Result<User, String> {
    let Account { name, secret } = account;
    let mut user = User::new();
    user.runs(|| client.login(registry, name, secret))
        .map_err(|error| format!("login of {name}: {error}"))?;
    user.pair = Some(format!("{name}:{secret}"));
    Ok(user)
}

impl Trial<'_> {
    pub fn registry(&self, i: usize) -> String {
        self.cluster.registry(i)
    }

    /// The client's own command, in the home of somebody new.
    pub fn login(&self, i: usize, account: &Account) -> Result<User, String> {
        login(self.client, &self.registry(i), account)
    }

    fn at(&self, i: usize, repository: &str) -> String {
        format!("{}/{repository}:{TAG}", self.registry(i))
    }

    pub fn push(&self, user: &User, image: &Layout, repository: &str) -> Result<(), String> {
        user.runs(|| self.client.push(image, &self.at(self.near, repository)))
            .map_err(|error| format!("push to {repository}: {error}"))
    }

    pub fn pull(
        &self,
        user: &User,
        i: usize,
        image: &Layout,
        repository: &str,
    ) -> Result<(), String> {
        user.runs(|| self.client.pull(&self.at(i, repository), image))
            .map_err(|error| format!("pull of {repository}: {error}"))
    }

    /// Neither at login nor later, as one that logged in before. A client that is not asked at login
    /// is tried once: whoever is wrong too often from one place waits.
    pub fn is_shut_out(&self, account: &Account) -> Result<(), String> {
        let Account { name, secret } = account;
        let app = &self.setting.app;
        match self.login(self.near, account) {
            Ok(_) if self.client.asks_at_login() => return Err(format!("{name} logged in")),
            Ok(user) => return refused(self.pull(&user, self.near, app, "team/app")),
            Err(said) => refused(Err(said))?,
        }
        let user = User::knowing(&self.registry(self.far), name, secret);
        refused(self.pull(&user, self.far, app, "team/app"))
    }
}

/// What clients make of 401 and 403.
const NO: [&str; 9] = [
    "unauthorized",
    "authentication required",
    "incorrect username or password",
    "invalid username/password",
    "is denied",
    "denied:",
    "insufficient_scope",
    "403 forbidden",
    "name or password is wrong",
];

/// It ended, and because the registry said no.
pub fn refused(result: Result<(), String>) -> Result<(), String> {
    let said = result.err().ok_or("it was let in")?;
    let told = words(&said);
    let lower = told.to_lowercase();
    match NO.iter().any(|no| lower.contains(no)) {
        true => {
            println!("      refused: {told}");
            Ok(())
        }
        false => Err(format!("it failed, but was it refused? {said}")),
    }
}

/// What the client itself said of it.
pub fn words(said: &str) -> String {
    let told = said
        .split_once("exit status: ")
        .map_or(said, |(_, told)| told);
    told.split_whitespace().collect::<Vec<_>>().join(" ")
}
