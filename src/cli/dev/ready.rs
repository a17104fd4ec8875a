//! When a `dev` cluster is ready: every region sees all voters and a leader, and a test proposal
//! is applied in every one. When a region is up again: it says so itself, and has caught up.

use super::plan::Admin;
use super::plan::Plan;
use super::plan::Region;
use crate::api::types::Accounts;
use crate::api::types::Probe;
use crate::api::types::State;
use crate::api::types::Status;
use crate::cli::output::Failure;
use crate::login::ADMIN;
use crate::server::local::socket_in;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

const CALL: Duration = Duration::from_secs(5);
/// The server holds a proposal while there is no leader.
const PROBE: Duration = Duration::from_secs(35);
const PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(90);

/// A socket's address holds no longer path.
const LONGEST_SOCKET: usize = 100;

/// How each region is asked.
pub struct Clients(BTreeMap<String, reqwest::Client>);

impl Clients {
    /// With accounts over the sockets of the nodes: the first admin is only being made. Where a path is
    /// too long for a socket, as that admin.
    pub fn new(plan: &Plan) -> Result<Clients, Failure> {
        let mut clients = BTreeMap::new();
        for region in &plan.regions {
            let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
            if let Some(admin) = &plan.admin {
                let socket = socket_in(&region.data_dir);
                builder = match socket.as_os_str().len() <= LONGEST_SOCKET {
                    true => builder.unix_socket(socket),
                    false => builder.default_headers(login(admin)?),
                };
            }
            let built = builder.build();
            let built = built.map_err(|error| Failure::failed("start the client", &error))?;
            clients.insert(region.name.clone(), built);
        }
        Ok(Clients(clients))
    }

    fn of(&self, region: &Region) -> &reqwest::Client {
        &self.0[&region.name]
    }
}

fn login(admin: &Admin) -> Result<HeaderMap, Failure> {
    let pair = format!("{ADMIN}:{}", admin.password.expose_secret());
    let basic = format!("Basic {}", STANDARD.encode(pair));
    let value = HeaderValue::try_from(basic);
    let mut value = value.map_err(|error| Failure::failed("write a header", &error))?;
    value.set_sensitive(true);
    Ok([(AUTHORIZATION, value)].into_iter().collect())
}

pub async fn cluster(clients: &Clients, plan: &Plan) -> Result<(), Failure> {
    let all = async {
        for region in &plan.regions {
            wait_for(clients.of(region), region, |status| {
                is_complete(status, plan.regions.len())
            })
            .await;
        }
        if plan.admin.is_some() {
            for region in &plan.regions {
                wait_for_admin(clients.of(region), region).await;
            }
        }
        let first = &plan.regions[0];
        let probe = probe(clients.of(first), first).await;
        for region in &plan.regions {
            wait_for(clients.of(region), region, |status| {
                own(status, region).is_some_and(|r| r.applied_index >= probe.index)
            })
            .await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| {
        Failure::limit(
            format!("the regions were not ready after {} s", PATIENCE.as_secs()),
            format!("look into the logs: {}/r*/log", plan.dir.display()),
        )
    })
}

pub async fn region(clients: &Clients, region: &Region) -> Result<(), Failure> {
    let up = wait_for(clients.of(region), region, |status| {
        own(status, region).is_some_and(|own| own.state == State::Up && own.lag == 0)
    });
    tokio::time::timeout(PATIENCE, up).await.map_err(|_| {
        Failure::limit(
            format!(
                "{} runs, but was not up after {} s",
                region.name,
                PATIENCE.as_secs()
            ),
            format!("look into its log: {}", region.log.display()),
        )
    })
}

fn is_complete(status: &Status, regions: usize) -> bool {
    let up = status
        .regions
        .iter()
        .filter(|r| r.state == State::Up && r.role.votes())
        .count();
    status.leader.is_some() && up == regions
}

/// What the answering region says of itself.
fn own<'s>(status: &'s Status, region: &Region) -> Option<&'s crate::api::types::Region> {
    status.regions.iter().find(|r| r.name == region.name)
}

async fn wait_for(client: &reqwest::Client, region: &Region, good: impl Fn(&Status) -> bool) {
    let url = format!("{}/api/v1/status", region.url());
    loop {
        let status = call::<Status>(client.get(&url).timeout(CALL)).await;
        if status.is_some_and(|status| good(&status)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The first admin can log in there.
async fn wait_for_admin(client: &reqwest::Client, region: &Region) {
    let url = format!("{}/api/v1/accounts", region.url());
    loop {
        let found = call::<Accounts>(client.get(&url).timeout(CALL)).await;
        if found.is_some_and(|found| found.accounts.iter().any(|account| account.name == ADMIN)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn probe(client: &reqwest::Client, region: &Region) -> Probe {
    let url = format!("{}/api/v1/probe", region.url());
    loop {
        if let Some(probe) = call(client.post(&url).timeout(PROBE)).await {
            return probe;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// None: ask again.
async fn call<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Option<T> {
    request
        .send()
        .await
        .ok()?
        .error_for_status()
        .ok()?
        .json()
        .await
        .ok()
}
