//! Logging in: the token endpoint, and the challenge that leads to it.

use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use reqwest::Method;
use serde_json::{Value, json};

async fn registry() -> (Cluster, Client) {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let image = Image::small("logins");
    assert_eq!(admin.push("a/b", "v1", &image).await.unwrap(), 201);
    (cluster, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn ext_token_is_given_for_a_login_and_to_nobody_for_what_is_public() {
    let (_cluster, admin) = registry().await;
    let ask = |client: &Client, query: &str| {
        let request = client.request(Method::GET, &format!("/token?service=x&{query}"));
        async { request.send().await.unwrap() }
    };
    let answer = ask(&admin, "scope=repository:a/b:pull,push").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let told: Value = answer.json().await.unwrap();
    assert_eq!(told["token"], told["access_token"]);
    assert_eq!(told["expires_in"], 300);
    assert_eq!(told["scope"], "repository:a/b:pull,push");
    assert!(told["issued_at"].as_str().unwrap().ends_with('Z'));
    assert!(told["refresh_token"].is_null());
    let nobody = ask(&admin.anonymous(), "scope=repository:a/b:pull").await;
    let told: Value = nobody.json().await.unwrap();
    assert_eq!(told["scope"], "", "less than was asked for is no error");
    let both = ask(
        &admin,
        "scope=repository:a/b:pull&scope=repository:c:delete",
    )
    .await;
    let told: Value = both.json().await.unwrap();
    assert_eq!(told["scope"], "repository:a/b:pull repository:c:delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_unauthorized_says_where_to_log_in_and_for_what() {
    let (_cluster, admin) = registry().await;
    let nobody = admin.anonymous();
    let challenge = |path: &'static str, method: Method| {
        let request = nobody.request(method, path);
        async {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 401);
            let challenge = answer.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .to_owned();
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["errors"][0]["code"], "UNAUTHORIZED");
            challenge
        }
    };
    assert!(!challenge("/v2/", Method::GET).await.contains("scope"));
    for (path, method, scope) in [
        ("/v2/_catalog", Method::GET, "registry:catalog:*"),
        ("/v2/a/b/manifests/v1", Method::GET, "repository:a/b:pull"),
        (
            "/v2/a/b/manifests/v1",
            Method::PUT,
            "repository:a/b:pull,push",
        ),
        (
            "/v2/a/b/manifests/v1",
            Method::DELETE,
            "repository:a/b:delete",
        ),
        (
            "/v2/no/such/tags/list",
            Method::GET,
            "repository:no/such:pull",
        ),
    ] {
        let told = challenge(path, method).await;
        assert!(told.contains(&format!(",scope=\"{scope}\"")), "{told}");
    }
    let asked = nobody.request(Method::GET, "/v2/").bearer_auth("x.y.z");
    let answer = asked.send().await.unwrap();
    let told = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(told.contains("error=\"invalid_token\""), "{told}");
    let scope = [("scope", "repository:a/b:pull")];
    let token = admin
        .request(Method::GET, "/token")
        .query(&scope)
        .send()
        .await
        .unwrap();
    let token: Value = token.json().await.unwrap();
    let push = nobody.request(Method::POST, "/v2/a/b/blobs/uploads/");
    let answer = push
        .bearer_auth(token["token"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    let told = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(told.contains("error=\"insufficient_scope\""), "{told}");
    // Who logs in without a token is told no, and nothing of tokens.
    let body = json!({"kind": "user", "password": "a-long-password"});
    let made = admin
        .request(Method::PUT, "/api/v1/accounts/ann")
        .json(&body);
    assert_eq!(made.send().await.unwrap().status(), 200);
    let ann = admin.logged_in("ann", "a-long-password");
    let answer = ann.get("/v2/a/b/tags/list").await.unwrap();
    assert_eq!(answer.status(), 403);
    assert!(!answer.headers().contains_key("www-authenticate"));
}
