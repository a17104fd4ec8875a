//! A CI system whose own tokens are taken: no secret is stored anywhere.

use super::{call, is_done, pushed, with_bearer};
use crate::harness::cluster::Cluster;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An issuer that tells its keys to whoever asks.
struct Issuer {
    url: String,
    key: EncodingKey,
}

impl Issuer {
    async fn start() -> Issuer {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k1"}]});
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        roadstead::tasks::Tasks::new().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = vec![0; 4096];
                let read = stream.read(&mut asked).await.unwrap_or(0);
                let is_keys = asked[..read].starts_with(b"GET /keys");
                let body = if is_keys { &keys } else { &discovery }.to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Issuer {
            url,
            key: EncodingKey::from_ed_der(pkcs8.as_ref()),
        }
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut claims = json!({
            "iss": self.url, "aud": "registry.acme", "sub": "repo:acme/app:ref:refs/heads/main",
            "repository": "acme/app", "iat": now, "exp": now + 300,
        });
        change(&mut claims);
        let header = Header {
            kid: Some("k1".into()),
            ..Header::new(Algorithm::EdDSA)
        };
        encode(&header, &claims, &self.key).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_logs_in_with_the_token_of_its_ci_system() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let (admin, issuer) = (cluster.client(0), Issuer::start().await);
    let anyone = admin.anonymous();
    pushed(&cluster, "acme/app").await;
    let trust = json!({
        "kind": "ci",
        "grants": [{"grant": "acme/app:pull,push"}],
        "ci": {"issuer": issuer.url, "audience": "registry.acme", "claims": {"repository": "acme/*", "sub": "repo:acme/*:ref:refs/heads/main"}},
    });
    is_done(call(&admin, Method::PUT, "/api/v1/accounts/forge", &trust).await);
    let login = |token: String, scope: &'static str| {
        let client = anyone.logged_in("oidc", &token);
        async move {
            let asked = client
                .request(Method::GET, "/token")
                .query(&[("scope", scope)]);
            let answer = asked.send().await.unwrap();
            let status = answer.status();
            let body: Value = answer.json().await.unwrap();
            (
                status,
                body["token"].as_str().unwrap_or_default().to_owned(),
            )
        }
    };
    let scope = "repository:acme/app:pull,push,delete";
    let (status, short) = login(issuer.token(|_| {}), scope).await;
    assert_eq!(status, 200);
    let tags = "/v2/acme/app/tags/list";
    assert_eq!(with_bearer(&anyone, Method::GET, tags, &short).await, 200);
    assert_eq!(
        with_bearer(&anyone, Method::POST, "/v2/acme/app/blobs/uploads/", &short).await,
        202
    );
    assert_eq!(
        with_bearer(&anyone, Method::DELETE, "/v2/acme/app/manifests/v1", &short).await,
        401
    );
    // As RFC 8693 has it, too.
    let form = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange".to_owned(),
        ),
        ("subject_token", issuer.token(|_| {})),
        ("scope", scope.to_owned()),
    ];
    let exchanged = anyone
        .request(Method::POST, "/token")
        .form(&form)
        .send()
        .await
        .unwrap();
    assert_eq!(exchanged.status(), 200);
    let other = Issuer::start().await;
    for (what, token) in [
        (
            "another repository",
            issuer.token(|c| c["repository"] = json!("evil/app")),
        ),
        (
            "another branch",
            issuer.token(|c| c["sub"] = json!("repo:acme/app:ref:refs/heads/evil")),
        ),
        (
            "no such claim",
            issuer.token(|c| drop(c.as_object_mut().unwrap().remove("repository"))),
        ),
        (
            "another audience",
            issuer.token(|c| c["aud"] = json!("other")),
        ),
        ("expired", issuer.token(|c| c["exp"] = json!(1))),
        ("another issuer", other.token(|_| {})),
        (
            "another issuer's key",
            other.token(|c| c["iss"] = json!(issuer.url)),
        ),
        ("nothing", "x.y.z".to_owned()),
    ] {
        assert_eq!(
            login(token, scope).await.0,
            StatusCode::UNAUTHORIZED,
            "{what}"
        );
    }
    is_done(
        call(
            &admin,
            Method::DELETE,
            "/api/v1/accounts/forge",
            &Value::Null,
        )
        .await,
    );
    assert_eq!(
        with_bearer(&anyone, Method::GET, tags, &short).await,
        401,
        "not trusted any more"
    );
}
