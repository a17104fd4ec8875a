//! Each route by each role. A route that is in the code and not in these lists fails the test.

use super::{bearer, call, pushed, token, user, with_bearer};

use crate::harness::cluster::Cluster;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const PASSWORD: &str = "a-password-of-its-own";

/// What a route of the registry needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Needs {
    Nothing,
    Login,
    Pull,
    Push,
    Delete,
}

/// By the name that `Route::name` gives it; `R` is the repository, `D` a digest that is there.
const ROUTES: &[(&str, &str, &str, Needs)] = &[
    ("health", "GET", "/healthz", Needs::Nothing),
    ("version", "OPTIONS", "/v2/", Needs::Nothing),
    ("token", "GET", "/token", Needs::Nothing),
    ("token", "POST", "/token", Needs::Nothing),
    ("version", "GET", "/v2/", Needs::Login),
    ("catalog", "GET", "/v2/_catalog", Needs::Login),
    ("get-blob", "GET", "/v2/R/blobs/D", Needs::Pull),
    ("get-blob", "HEAD", "/v2/R/blobs/D", Needs::Pull),
    ("get-manifest", "GET", "/v2/R/manifests/v1", Needs::Pull),
    ("get-manifest", "HEAD", "/v2/R/manifests/v1", Needs::Pull),
    ("tags", "GET", "/v2/R/tags/list", Needs::Pull),
    ("referrers", "GET", "/v2/R/referrers/D", Needs::Pull),
    ("put-manifest", "PUT", "/v2/R/manifests/new", Needs::Push),
    ("start-upload", "POST", "/v2/R/blobs/uploads/", Needs::Push),
    ("upload-status", "GET", "/v2/R/blobs/uploads/x", Needs::Push),
    (
        "append-upload",
        "PATCH",
        "/v2/R/blobs/uploads/x",
        Needs::Push,
    ),
    (
        "finish-upload",
        "PUT",
        "/v2/R/blobs/uploads/x?digest=D",
        Needs::Push,
    ),
    (
        "cancel-upload",
        "DELETE",
        "/v2/R/blobs/uploads/x",
        Needs::Push,
    ),
    (
        "delete-manifest",
        "DELETE",
        "/v2/R/manifests/not-there",
        Needs::Delete,
    ),
    ("delete-blob", "DELETE", "/v2/R/blobs/D", Needs::Delete),
];

/// Who, and what they may do in `acme/app`.
const ROLES: &[(&str, &[&str], &[Needs])] = &[
    ("nobody-here", &["other/*:admin"], &[]),
    ("reader", &["acme/*:pull"], &[Needs::Pull]),
    ("creator", &["acme/app:create"], &[Needs::Push]),
    ("mover", &["acme/app:overwrite"], &[Needs::Push]),
    ("writer", &["acme/*:pull,push"], &[Needs::Pull, Needs::Push]),
    ("deleter", &["acme/app:delete"], &[Needs::Delete]),
    (
        "owner",
        &["acme/*:admin"],
        &[Needs::Pull, Needs::Push, Needs::Delete],
    ),
    (
        "root",
        &["*:admin"],
        &[Needs::Pull, Needs::Push, Needs::Delete],
    ),
];

fn may(needs: Needs, allowed: &[Needs]) -> bool {
    needs == Needs::Nothing || needs == Needs::Login || allowed.contains(&needs)
}

fn is_refused(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_of_the_registry_lets_in_who_has_no_right() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let image = pushed(&cluster, "acme/app").await;
    let digest = image.blobs[0].0.to_string();
    let nobody = admin.anonymous();
    for (role, grants, allowed) in ROLES {
        user(&admin, role, PASSWORD, grants).await;
        let client = admin.logged_in(role, PASSWORD);
        for (name, method, path, needs) in ROUTES {
            let path = path.replace('R', "acme/app").replace('D', &digest);
            let method: Method = method.parse().unwrap();
            let by_password = client
                .request(method.clone(), &path)
                .send()
                .await
                .unwrap()
                .status();
            let is_let_in = may(*needs, allowed);
            assert_eq!(
                !is_refused(by_password),
                is_let_in,
                "{role} {name} {method} {by_password}"
            );
            if *needs != Needs::Nothing {
                let told = nobody.request(method.clone(), &path).send().await.unwrap();
                assert_eq!(told.status(), StatusCode::UNAUTHORIZED, "{name} {method}");
                let challenge = told.headers()["www-authenticate"].to_str().unwrap();
                assert!(
                    challenge.starts_with("Bearer realm=\"http://127.0.0.1:"),
                    "{challenge}"
                );
            }
            // A token for everything that may be asked for is good for no more than its account.
            let scopes = "repository:acme/app:pull,push,delete registry:catalog:*";
            let short = bearer(&client, scopes).await;
            if *needs != Needs::Nothing {
                let by_token = with_bearer(&nobody, method.clone(), &path, &short).await;
                assert_eq!(
                    !is_refused(by_token),
                    is_let_in,
                    "{role} {name} {method} {by_token}"
                );
                let nothing = bearer(&client, "repository:acme/else:pull,push,delete").await;
                let narrow = with_bearer(&nobody, method.clone(), &path, &nothing).await;
                let is_narrow_in = *needs == Needs::Login;
                assert_eq!(
                    !is_refused(narrow),
                    is_narrow_in,
                    "{role} {name} {method} {narrow}"
                );
            }
        }
    }
    // All that was allowed was in vain, on purpose: the image is there as it was.
    admin.pull("acme/app", "v1", &image).await.unwrap();
}

#[test]
fn no_route_of_the_registry_is_left_out() {
    let source = include_str!("../../src/http/route.rs");
    let (_, rest) = source.split_once("pub fn name(&self)").unwrap();
    let (names, _) = rest.split_once("\n    }\n").unwrap();
    let names: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 14, "{names:?}");
    for name in names {
        assert!(
            ROUTES.iter().any(|route| route.0 == name),
            "{name} is in no list"
        );
    }
}

/// What a call of the admin API needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Api {
    /// Any login.
    Login,
    /// An admin of the prefix `acme`, or of more.
    Prefix,
    /// An admin of everything.
    All,
}

/// The path as the router has it, the call as it is made.
const CALLS: &[(&str, &str, &str, Api)] = &[
    ("/api/v1/status", "GET", "/api/v1/status", Api::Login),
    ("/api/v1/whoami", "GET", "/api/v1/whoami", Api::Login),
    ("/api/v1/accounts", "GET", "/api/v1/accounts", Api::Login),
    ("/api/v1/groups", "GET", "/api/v1/groups", Api::Login),
    ("/api/v1/policies", "GET", "/api/v1/policies", Api::Login),
    (
        "/api/v1/verify/metadata",
        "GET",
        "/api/v1/verify/metadata",
        Api::All,
    ),
    ("/api/v1/probe", "POST", "/api/v1/probe", Api::All),
    ("/api/v1/audit", "GET", "/api/v1/audit", Api::All),
    (
        "/api/v1/signing-keys",
        "GET",
        "/api/v1/signing-keys",
        Api::All,
    ),
    (
        "/api/v1/signing-keys",
        "POST",
        "/api/v1/signing-keys",
        Api::All,
    ),
    (
        "/api/v1/regions/{name}/join-token",
        "POST",
        "/api/v1/regions/r9/join-token",
        Api::All,
    ),
    (
        "/api/v1/regions/{name}/join-token",
        "DELETE",
        "/api/v1/regions/r9/join-token",
        Api::All,
    ),
    (
        "/api/v1/policies/{*prefix}",
        "GET",
        "/api/v1/policies/acme",
        Api::Prefix,
    ),
    (
        "/api/v1/policies/{*prefix}",
        "PUT",
        "/api/v1/policies/acme",
        Api::Prefix,
    ),
    (
        "/api/v1/policies/{*prefix}",
        "DELETE",
        "/api/v1/policies/acme?key=visibility",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}",
        "GET",
        "/api/v1/accounts/victim",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}",
        "PUT",
        "/api/v1/accounts/made",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}/rotate",
        "POST",
        "/api/v1/accounts/victim/rotate",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}/grants",
        "PUT",
        "/api/v1/accounts/person/grants",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}/grants",
        "DELETE",
        "/api/v1/accounts/person/grants?pattern=acme/x",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}",
        "DELETE",
        "/api/v1/accounts/made",
        Api::Prefix,
    ),
    (
        "/api/v1/accounts/{name}/password",
        "PUT",
        "/api/v1/accounts/person/password",
        Api::All,
    ),
    (
        "/api/v1/groups/{name}",
        "PUT",
        "/api/v1/groups/made",
        Api::All,
    ),
    (
        "/api/v1/groups/{name}/grants",
        "PUT",
        "/api/v1/groups/devs/grants",
        Api::Prefix,
    ),
    (
        "/api/v1/groups/{name}/grants",
        "DELETE",
        "/api/v1/groups/devs/grants?pattern=acme/x",
        Api::Prefix,
    ),
    (
        "/api/v1/groups/{name}/members/{account}",
        "PUT",
        "/api/v1/groups/devs/members/person",
        Api::Prefix,
    ),
    (
        "/api/v1/groups/{name}/members/{account}",
        "DELETE",
        "/api/v1/groups/devs/members/person",
        Api::Prefix,
    ),
    (
        "/api/v1/groups/{name}",
        "DELETE",
        "/api/v1/groups/made",
        Api::All,
    ),
    ("/api/{*rest}", "GET", "/api/v1/nothing", Api::Login),
];

fn body(method: &str, path: &str) -> Value {
    match (method, path) {
        ("PUT", "/api/v1/policies/acme") => json!({"visibility": "private"}),
        ("PUT", "/api/v1/accounts/made") => {
            json!({"kind": "token", "grants": [{"grant": "acme/app:pull"}]})
        }
        ("PUT", path) if path.ends_with("/grants") => json!({"grant": "acme/x:pull"}),
        ("PUT", path) if path.ends_with("/password") => json!({"password": "another-password"}),
        ("PUT", "/api/v1/groups/made") => json!({}),
        ("POST", path) if path.ends_with("/rotate") => json!({}),
        ("POST", path) if path.ends_with("/join-token") => json!({"dry_run": true}),
        _ => Value::Null,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_the_admin_api_lets_in_who_is_no_admin_of_it() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    token(&admin, "victim", &["acme/app:pull"]).await;
    user(&admin, "person", PASSWORD, &[]).await;
    let devs = json!({"grants": [{"grant": "acme/*:pull"}]});
    assert_eq!(
        call(&admin, Method::PUT, "/api/v1/groups/devs", &devs)
            .await
            .0,
        200
    );
    for (role, grants, _) in ROLES {
        user(&admin, role, PASSWORD, grants).await;
    }
    let robot = token(&admin, "robot", &["acme/*:pull,push,delete"]).await;
    for (role, rank) in [
        ("", None),
        ("nobody-here", Some(Api::Login)),
        ("reader", Some(Api::Login)),
        ("writer", Some(Api::Login)),
        ("deleter", Some(Api::Login)),
        ("robot", Some(Api::Login)),
        ("owner", Some(Api::Prefix)),
        ("root", Some(Api::All)),
    ] {
        let client = match role {
            "" => admin.anonymous(),
            "robot" => admin.logged_in(role, &robot),
            role => admin.logged_in(role, PASSWORD),
        };
        let state = || async {
            let accounts = call(&admin, Method::GET, "/api/v1/accounts", &Value::Null)
                .await
                .1;
            let mut accounts = accounts["accounts"].as_array().unwrap().clone();
            accounts
                .iter_mut()
                .for_each(|account| account["used_at_ms"] = Value::Null);
            let groups = call(&admin, Method::GET, "/api/v1/groups", &Value::Null)
                .await
                .1;
            let policies = call(&admin, Method::GET, "/api/v1/policies", &Value::Null)
                .await
                .1;
            (accounts, groups, policies["policies"].clone())
        };
        let before = state().await;
        for (_, method, path, needs) in CALLS {
            let (verb, body) = (method.parse().unwrap(), body(method, path));
            let (status, told) = call(&client, verb, path, &body).await;
            let is_let_in = match (rank, needs) {
                (None, _) => false,
                (Some(_), Api::Login) | (Some(Api::All), _) => true,
                (Some(rank), needs) => rank == *needs,
            };
            let what = format!("{role:?} {method} {path}: {status} {told}");
            match is_let_in {
                true => assert!(status.is_success() || *path == "/api/v1/nothing", "{what}"),
                false if rank.is_none() => assert_eq!(status, 401, "{what}"),
                false => assert!([403, 404].contains(&status.as_u16()), "{what}"),
            }
            if !is_let_in {
                assert!(told["error"]["next"].is_string(), "{what}");
            }
        }
        if !matches!(rank, Some(Api::Prefix | Api::All)) {
            assert_eq!(state().await, before, "{role:?} changed something");
        }
        // A short-lived token administers nothing, whoever it is of.
        if rank.is_some() {
            let short = bearer(&client, "repository:acme/app:pull,push,delete").await;
            let nothing = admin.anonymous();
            for path in [
                "/api/v1/verify/metadata",
                "/api/v1/policies/acme",
                "/api/v1/audit",
            ] {
                let status = with_bearer(&nothing, Method::GET, path, &short).await;
                assert_eq!(status, 403, "{role} {path}");
            }
        }
    }
}

#[test]
fn no_call_of_the_admin_api_is_left_out() {
    let source = include_str!("../../src/api/mod.rs");
    let (_, rest) = source.split_once("pub fn routes").unwrap();
    let (routes, _) = rest.split_once("\n}\n").unwrap();
    let mut listed = 0;
    for route in routes.split(".route(").skip(1) {
        let path = route.split('"').nth(1).unwrap();
        for (word, method) in [
            ("get(", "GET"),
            ("put(", "PUT"),
            ("post(", "POST"),
            ("delete(", "DELETE"),
        ] {
            if route.contains(word) {
                let is_listed = CALLS.iter().any(|call| call.0 == path && call.1 == method);
                assert!(is_listed, "{method} {path} is in no list");
                listed += 1;
            }
        }
    }
    assert!(listed > 20, "only {listed}");
}

/// CVE-2019-16097 (a user made itself an admin by a field that the form did not show).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_16097_a_body_with_a_field_too_many_is_refused() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    user(&admin, "owner", PASSWORD, &["acme/*:admin"]).await;
    let owner = admin.logged_in("owner", PASSWORD);
    for extra in [
        "everything",
        "has_admin_role",
        "authority",
        "index",
        "created_by",
        "secrets",
    ] {
        let mut body = json!({"kind": "token", "grants": [{"grant": "acme/a:pull"}]});
        body[extra] = json!(true);
        let (status, told) = call(&owner, Method::PUT, "/api/v1/accounts/t1", &body).await;
        assert_eq!(status, 400, "{extra} {told}");
    }
    for (kind, grant, status) in [
        ("token", "*:admin", 403),
        ("token", "acme2/*:pull", 403),
        ("user", "acme/*:pull", 403),
        ("key", "acme/*:pull", 200),
    ] {
        let mut body = json!({"kind": kind, "grants": [{"grant": grant}]});
        if kind == "user" {
            body["password"] = json!("some-password-here");
        }
        let made = call(&owner, Method::PUT, "/api/v1/accounts/t2", &body).await;
        assert_eq!(made.0, status, "{kind} {grant} {}", made.1);
    }
    let me = call(&owner, Method::GET, "/api/v1/whoami", &Value::Null)
        .await
        .1;
    assert_eq!(me["administers"], json!(["acme/*"]));
}
