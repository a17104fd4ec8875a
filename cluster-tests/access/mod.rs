//! Who may do what, as an attacker and as an operator tries it: each route by each role, what was taken
//! away, forged tokens, guessed passwords, secrets that must not show.

mod ci;
mod cves;
mod doors;
mod forged;
mod guessing;
mod proxied;
mod revoked;
mod secrets;
mod tenants;

use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A call of the admin API: the status, and the body when it is JSON.
pub async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: &Value,
) -> (StatusCode, Value) {
    let request = client.request(method, path);
    let request = match body {
        Value::Null => request,
        body => request.json(body),
    };
    let answer = request.send().await.unwrap();
    let status = answer.status();
    (status, answer.json().await.unwrap_or_default())
}

#[track_caller]
pub fn is_done((status, body): (StatusCode, Value)) -> Value {
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

pub async fn user(admin: &Client, name: &str, password: &str, grants: &[&str]) {
    let body = json!({"kind": "user", "password": password, "grants": of(grants)});
    is_done(
        call(
            admin,
            Method::PUT,
            &format!("/api/v1/accounts/{name}"),
            &body,
        )
        .await,
    );
}

/// Its secret.
pub async fn token(admin: &Client, name: &str, grants: &[&str]) -> String {
    let body = json!({"kind": "token", "grants": of(grants)});
    let made = call(
        admin,
        Method::PUT,
        &format!("/api/v1/accounts/{name}"),
        &body,
    )
    .await;
    is_done(made)["secret"].as_str().unwrap().to_owned()
}

fn of(grants: &[&str]) -> Vec<Value> {
    grants.iter().map(|grant| json!({"grant": grant})).collect()
}

pub async fn visibility(admin: &Client, prefix: &str, word: &str) {
    let body = json!({"visibility": word});
    is_done(
        call(
            admin,
            Method::PUT,
            &format!("/api/v1/policies/{prefix}"),
            &body,
        )
        .await,
    );
}

/// A short-lived token for the scope, as the client gets it.
pub async fn bearer(client: &Client, scope: &str) -> String {
    let asked = client
        .request(Method::GET, "/token")
        .query(&[("scope", scope)]);
    let answer: Value = asked.send().await.unwrap().json().await.unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

/// The status of a request with this token.
pub async fn with_bearer(client: &Client, method: Method, path: &str, token: &str) -> StatusCode {
    let request = client.anonymous().request(method, path).bearer_auth(token);
    request.send().await.unwrap().status()
}

/// An image of `repository:v1`, pushed by the admin.
pub async fn pushed(cluster: &Cluster, repository: &str) -> Image {
    let image = Image::small(repository);
    let status = cluster
        .client(0)
        .push(repository, "v1", &image)
        .await
        .unwrap();
    assert_eq!(status, StatusCode::CREATED);
    image
}
