//! Credentials that nobody gave out, and requests that pretend.

use super::{bearer, pushed, user, visibility, with_bearer};
use crate::harness::cluster::{ADMIN_PASSWORD, Cluster};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_token_opens_anything_and_each_gets_a_challenge() {
    let (cluster, other) = (
        Cluster::start_with_accounts(1, &[]).await,
        Cluster::start_with_accounts(1, &[]).await,
    );
    pushed(&cluster, "acme/app").await;
    pushed(&other, "acme/app").await;
    let admin = cluster.client(0);
    let good = bearer(&admin, "repository:acme/app:pull").await;
    let path = "/v2/acme/app/manifests/v1";
    assert_eq!(with_bearer(&admin, Method::GET, path, &good).await, 200);
    let parts: Vec<&str> = good.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[0]).unwrap()).unwrap();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let with_claim = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        format!("{}.{}.{}", parts[0], encode(&claims), parts[2])
    };
    let with_header = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        format!("{}.{}.{}", encode(&header), parts[1], parts[2])
    };
    let of_other = bearer(&other.client(0), "repository:acme/app:pull").await;
    for (what, token) in [
        ("another cluster", of_other),
        ("no algorithm", with_header("alg", json!("none"))),
        (
            "no algorithm, no signature",
            format!(
                "{}.{}.",
                encode(&json!({"alg": "none", "typ": "JWT"})),
                parts[1]
            ),
        ),
        ("another algorithm", with_header("alg", json!("HS256"))),
        (
            "a key in the header",
            with_header("jwk", json!({"kty": "oct", "k": "AA"})),
        ),
        (
            "a key somewhere else",
            with_header("jku", json!("http://127.0.0.1:1/keys")),
        ),
        (
            "a path as the key",
            with_header("kid", json!("../../../../etc/passwd")),
        ),
        ("a longer life", with_claim("exp", json!(4_000_000_000u64))),
        ("another account", with_claim("sub", json!("root"))),
        (
            "more scope",
            with_claim(
                "access",
                json!([{"type": "repository", "name": "acme/app", "actions": ["pull", "push", "delete"]}]),
            ),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("nothing", String::new()),
        (
            "a secret that was never made",
            "rst_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        ),
        ("something long", "x".repeat(20_000)),
    ] {
        let request = admin.anonymous().request(Method::GET, path);
        let answer = request
            .header("authorization", format!("Bearer {token}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401, "{what}");
        let challenge = answer.headers()["www-authenticate"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            challenge.contains("scope=\"repository:acme/app:pull\""),
            "{what}: {challenge}"
        );
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], "UNAUTHORIZED", "{what}");
    }
    // One that asks for more than its account may have gets less, and no error.
    user(&admin, "reader", "a-long-password", &["acme/app:pull"]).await;
    let reader = admin.logged_in("reader", "a-long-password");
    let short = bearer(&reader, "repository:acme/app:pull,push,delete,*,admin").await;
    assert_eq!(with_bearer(&admin, Method::GET, path, &short).await, 200);
    let uploads = "/v2/acme/app/blobs/uploads/";
    assert_eq!(
        with_bearer(&admin, Method::POST, uploads, &short).await,
        401
    );
    // A token makes no other token.
    let again = admin
        .anonymous()
        .request(Method::GET, "/token?scope=repository:acme/app:pull");
    assert_eq!(
        again.bearer_auth(&short).send().await.unwrap().status(),
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_logins_are_wrong_logins() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let anyone = cluster.client(0).anonymous();
    let basic = |text: &[u8]| [b"Basic ".as_slice(), STANDARD.encode(text).as_bytes()].concat();
    let right = basic(format!("admin:{ADMIN_PASSWORD}").as_bytes());
    let status = |value: Vec<u8>| {
        let value = http::HeaderValue::from_bytes(&value).unwrap();
        let request = anyone
            .request(Method::GET, "/v2/")
            .header("authorization", value);
        async { request.send().await.unwrap().status() }
    };
    assert_eq!(status(right.clone()).await, 200);
    let lower = [b"bASIC".as_slice(), &right[5..]].concat();
    assert_eq!(status(lower).await, 200);
    for wrong in [
        basic(b"admin"),
        basic(b"admin:"),
        basic(b":"),
        basic(format!(":{ADMIN_PASSWORD}").as_bytes()),
        basic(format!("admin:{ADMIN_PASSWORD}\0").as_bytes()),
        basic(format!("admin\0:{ADMIN_PASSWORD}").as_bytes()),
        basic(format!("ADMIN:{ADMIN_PASSWORD}").as_bytes()),
        basic(format!("admin:{ADMIN_PASSWORD}:").as_bytes()),
        basic(&[0xff, 0xfe, b':', 0xff]),
        basic("ädmin:ö".as_bytes()),
        basic(&[b'x'; 15_000]),
        basic(&[b"admin:".as_slice(), &[b'x'; 15_000]].concat()),
        b"Basic".to_vec(),
        b"Basic %%%".to_vec(),
        b"Basic \xff".to_vec(),
        b"Digest username=\"admin\"".to_vec(),
        b"Negotiate abc".to_vec(),
    ] {
        // Without name and password nobody is named, and the challenge is the same.
        let shown = String::from_utf8_lossy(&wrong[..wrong.len().min(60)]).into_owned();
        assert_eq!(status(wrong).await, 401, "{shown}");
    }
    let twice = anyone
        .request(Method::GET, "/v2/")
        .header("authorization", String::from_utf8(right.clone()).unwrap())
        .header("authorization", "Basic eDp5");
    assert_eq!(twice.send().await.unwrap().status(), 401);
    // The cluster is alive, and the right password still right.
    assert_eq!(status(right).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_takes_what_clients_send_and_nothing_else() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let anyone = admin.anonymous();
    pushed(&cluster, "acme/app").await;
    let post = |form: Vec<(&'static str, String)>| {
        let request = anyone.request(Method::POST, "/token").form(&form);
        async {
            let answer = request.send().await.unwrap();
            (answer.status(), answer.json::<Value>().await.unwrap())
        }
    };
    let text = |s: &str| s.to_owned();
    let login = vec![
        ("grant_type", text("password")),
        ("username", text("admin")),
        ("password", text(ADMIN_PASSWORD)),
        ("service", text("x")),
        (
            "scope",
            text("repository:acme/app:pull repository:acme/b:push"),
        ),
        ("access_type", text("offline")),
    ];
    let (status, told) = post(login).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["token"], told["access_token"]);
    assert_eq!(told["expires_in"], 300);
    let token = told["token"].as_str().unwrap();
    let path = "/v2/acme/app/tags/list";
    assert_eq!(with_bearer(&anyone, Method::GET, path, token).await, 200);
    let refresh = text(told["refresh_token"].as_str().unwrap());
    assert_eq!(
        with_bearer(&anyone, Method::GET, path, &refresh).await,
        401,
        "it is for /token only"
    );
    let again = |refresh: String| {
        vec![
            ("grant_type", text("refresh_token")),
            ("refresh_token", refresh),
            ("scope", text("repository:acme/app:pull")),
        ]
    };
    let (status, told) = post(again(refresh.clone())).await;
    assert_eq!(status, 200, "{told}");
    let renewed = told["access_token"].as_str().unwrap();
    assert_eq!(with_bearer(&anyone, Method::GET, path, renewed).await, 200);
    let (status, _) = post(again(text(token))).await;
    assert_eq!(status, 401, "an access token does not renew itself");
    for (form, expected) in [
        (
            vec![
                ("grant_type", text("password")),
                ("username", text("admin")),
                ("password", text("wrong")),
            ],
            401,
        ),
        (
            vec![
                ("grant_type", text("password")),
                ("username", text("admin")),
            ],
            400,
        ),
        (vec![("grant_type", text("client_credentials"))], 400),
        (vec![("scope", text("repository:acme/app:pull"))], 400),
        (again(text("x.y.z")), 401),
    ] {
        let (status, told) = post(form).await;
        assert_eq!(status, expected, "{told}");
        assert!(told["errors"][0]["message"].is_string(), "{told}");
    }
    let json = anyone
        .request(Method::POST, "/token")
        .json(&json!({"grant_type": "password"}));
    assert_eq!(json.send().await.unwrap().status(), 400);
    let huge = anyone
        .request(Method::POST, "/token")
        .form(&[("grant_type", "x".repeat(100_000))]);
    assert_eq!(huge.send().await.unwrap().status(), 413);
    // `docker login` with a refresh token; without one asked for there is none.
    let asked = admin.request(Method::GET, "/token?offline_token=true&client_id=docker");
    let told: Value = asked.send().await.unwrap().json().await.unwrap();
    assert!(told["refresh_token"].is_string());
    let token = told["token"].as_str().unwrap();
    assert_eq!(with_bearer(&anyone, Method::GET, "/v2/", token).await, 200);
    assert_eq!(
        with_bearer(&anyone, Method::GET, path, token).await,
        StatusCode::UNAUTHORIZED
    );
}

/// CVE-2026-27771 (private images could be pulled by anyone: the pages asked, `/v2/` did not), and
/// CVE-2020-29662 (the catalog was open).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_27771_anyone_sees_what_is_public_and_nothing_else() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let anyone = admin.anonymous();
    let mut images = Vec::new();
    for name in ["open/app", "open/secret/app", "openly/app", "closed"] {
        images.push((name, pushed(&cluster, name).await));
    }
    visibility(&admin, "open", "public").await;
    visibility(&admin, "open/secret", "private").await;
    for (name, image) in &images {
        let is_public = *name == "open/app";
        let token = bearer(&anyone, &format!("repository:{name}:pull")).await;
        let blob = format!("/v2/{name}/blobs/{}", image.blobs[1].0);
        for path in [
            format!("/v2/{name}/manifests/v1"),
            blob,
            format!("/v2/{name}/tags/list"),
        ] {
            let status = with_bearer(&anyone, Method::GET, &path, &token).await;
            assert_eq!(status, if is_public { 200 } else { 401 }, "{path}");
        }
    }
    let token = bearer(&anyone, "registry:catalog:*").await;
    let asked = anyone
        .request(Method::GET, "/v2/_catalog")
        .bearer_auth(&token);
    let seen: Value = asked.send().await.unwrap().json().await.unwrap();
    assert_eq!(seen["repositories"], json!(["open/app"]));
    user(
        &admin,
        "reader",
        "a-long-password",
        &["closed:pull", "open/secret/*:pull"],
    )
    .await;
    let reader = admin.logged_in("reader", "a-long-password");
    let pages = |n: usize| {
        let reader = reader.clone();
        async move {
            let (mut names, mut path) = (Vec::new(), format!("/v2/_catalog?n={n}"));
            loop {
                let answer = reader.get(&path).await.unwrap();
                let next = answer.headers().get("link").map(|link| {
                    let link = link.to_str().unwrap();
                    link[1..link.find('>').unwrap()].to_owned()
                });
                let page: Value = answer.json().await.unwrap();
                names.extend(page["repositories"].as_array().unwrap().clone());
                match next {
                    Some(next) => path = next,
                    None => return names,
                }
            }
        }
    };
    for n in [1, 2, 100] {
        assert_eq!(
            json!(pages(n).await),
            json!(["closed", "open/app", "open/secret/app"]),
            "{n}"
        );
    }
}

/// What a client says of itself counts for nothing, without a proxy that is trusted.
#[tokio::test(flavor = "multi_thread")]
async fn forwarded_headers_of_strangers_are_not_believed() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let anyone = cluster.client(0).anonymous();
    let asked = anyone
        .request(Method::GET, "/v2/")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-for", "203.0.113.7");
    let answer = asked.send().await.unwrap();
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains("realm=\"http://127.0.0.1:"),
        "{challenge}"
    );
    let proxied = [
        ("ROADSTEAD_REGISTRY__TRUSTED_PROXIES", "127.0.0.0/8"),
        (
            "ROADSTEAD_REGISTRY__EXTERNAL_URLS",
            "https://a.example,https://b.example:8443",
        ),
    ];
    let cluster = Cluster::start_with_accounts(1, &proxied).await;
    let anyone = cluster.client(0).anonymous();
    for (host, realm) in [
        ("a.example", "https://a.example/token"),
        ("b.example:8443", "https://b.example:8443/token"),
        ("evil.example", "https://a.example/token"),
    ] {
        let asked = anyone
            .request(Method::GET, "/v2/")
            .header("x-forwarded-host", host);
        let answer = asked.send().await.unwrap();
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
        assert!(
            challenge.contains(&format!("realm=\"{realm}\"")),
            "{host}: {challenge}"
        );
    }
}
