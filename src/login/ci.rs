//! Tokens of CI systems (OpenID Connect): a job shows the one that its system gave it, and gets ours
//! for it, so that there is no secret to store.
//!
//! What must stay true: only issuers that an admin trusts are asked for keys, over HTTPS, without
//! redirects, and not more often than a bound; a token must be for our audience and have every claim
//! that the trust names.

use super::Denied;
use super::Login;
use crate::access::CredentialId;
use crate::access::Principal;
use crate::access::Who;
use crate::clock::wall_ms;
use crate::metadata::accounts::Account;
use crate::proto::state::v1::AccountKind;
use crate::proto::state::v1::CiTrust;
use jsonwebtoken::Algorithm;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::Validation;
use jsonwebtoken::jwk::JwkSet;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const TOKEN_MAX: usize = 16 << 10;
const ASK: Duration = Duration::from_secs(5);
/// An issuer's keys are good for so long, and asked for anew no more often than that.
const KEEP: Duration = Duration::from_secs(3600);
const ASK_AGAIN: Duration = Duration::from_secs(60);
const KEYS_MAX: usize = 256 << 10;
const LEEWAY_SECONDS: u64 = 60;
/// No HMAC: a key that is public must not be a secret.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

struct Known {
    keys: Arc<JwkSet>,
    asked: Instant,
}

impl Known {
    fn keys(&self) -> Result<Arc<JwkSet>, Denied> {
        match self.keys.keys.is_empty() {
            true => Err(Denied::NotYet(
                "the issuer of this token does not give its keys now; try again in a minute",
            )),
            false => Ok(self.keys.clone()),
        }
    }
}

/// The keys of issuers that were asked.
pub struct Issuers {
    http: Option<reqwest::Client>,
    known: tokio::sync::Mutex<HashMap<String, Known>>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// `*` in what is wanted stands for any text.
fn matches(wanted: &str, found: &str) -> bool {
    let mut parts = wanted.split('*');
    let Some(mut rest) = found.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn has_claims(trust: &CiTrust, claims: &Value) -> bool {
    trust
        .claims
        .iter()
        .all(|(name, wanted)| match claims.get(name) {
            Some(Value::String(found)) => matches(wanted, found),
            Some(Value::Bool(found)) => wanted.parse() == Ok(*found),
            Some(Value::Number(found)) => wanted
                .parse()
                .is_ok_and(|wanted: serde_json::Number| wanted == *found),
            _ => false,
        })
}

/// Signed by one of the keys, by this issuer, for this audience, good now, with these claims.
fn is_good(token: &str, trust: &CiTrust, keys: &JwkSet) -> Result<(), Denied> {
    let bad = Denied::Token("it is not one of a CI system that is trusted here");
    let Ok(header) = jsonwebtoken::decode_header(token) else {
        return Err(bad);
    };
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Denied::Token("it is signed in a way that is not taken"));
    }
    let of_kid = |kid: &str| keys.find(kid);
    let key = match header.kid.as_deref() {
        Some(kid) => of_kid(kid),
        None if keys.keys.len() == 1 => keys.keys.first(),
        None => None,
    };
    let Some(key) = key.and_then(|key| DecodingKey::from_jwk(key).ok()) else {
        return Err(Denied::Token(
            "its issuer does not have the key that signed it",
        ));
    };
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&[&trust.audience]);
    validation.set_issuer(&[&trust.issuer]);
    validation.set_required_spec_claims(&["exp", "aud", "iss"]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_SECONDS;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation);
    let claims = claims.map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::ExpiredSignature => Denied::Token("it has expired"),
        jsonwebtoken::errors::ErrorKind::InvalidAudience => {
            Denied::Token("it is for another audience")
        }
        _ => bad,
    })?;
    match has_claims(trust, &claims.claims) {
        true => Ok(()),
        false => Err(Denied::Token("its claims are not those that are trusted")),
    }
}

/// The issuer that a token says that it is of; not to be believed yet.
fn claimed_issuer(token: &str) -> Option<String> {
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(token)
        .ok()?
        .claims;
    claims.get("iss")?.as_str().map(str::to_owned)
}

/// HTTPS. An issuer on this machine, and what it names here, may go without; one that is elsewhere
/// leads to nothing here.
fn is_askable(url: &str, issuer: &str) -> bool {
    match (is_local(issuer), is_local(url)) {
        (true, true) => true,
        (_, is_local) => !is_local && is_remote(url),
    }
}

fn is_local(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else {
        return false;
    };
    matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

fn is_remote(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else {
        return false;
    };
    url.username().is_empty() && url.scheme() == "https"
}

impl Issuers {
    pub fn new() -> Issuers {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(ASK)
            .timeout(ASK)
            .build();
        Issuers {
            http: http.ok(),
            known: tokio::sync::Mutex::default(),
        }
    }

    async fn get(&self, url: &str, issuer: &str) -> Result<Vec<u8>, String> {
        if !is_askable(url, issuer) {
            return Err(format!("{url} is not an https URL"));
        }
        let http = self
            .http
            .as_ref()
            .ok_or("this machine has no certificates to trust")?;
        let mut answer = http
            .get(url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let mut all = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| error.to_string())? {
            if all.len() + piece.len() > KEYS_MAX {
                return Err(format!("{url} answered too much"));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn ask(&self, issuer: &str) -> Result<JwkSet, String> {
        let place = format!(
            "{}/.well-known/openid-configuration",
            issuer.trim_end_matches('/')
        );
        let found: Discovery = serde_json::from_slice(&self.get(&place, issuer).await?)
            .map_err(|error| format!("{place}: {error}"))?;
        if found.issuer != issuer {
            return Err(format!("{place} is of another issuer"));
        }
        let keys = self.get(&found.jwks_uri, issuer).await?;
        serde_json::from_slice(&keys).map_err(|error| format!("{}: {error}", found.jwks_uri))
    }

    /// `kid`: of the key that is looked for; one that is new is asked for.
    async fn keys(&self, trust: &CiTrust, kid: Option<&str>) -> Result<Arc<JwkSet>, Denied> {
        if !trust.jwks.is_empty() {
            let keys = serde_json::from_str(&trust.jwks);
            return keys
                .map(Arc::new)
                .map_err(|_| Denied::NotYet("the keys of this trust cannot be read"));
        }
        // Held while asking: all who wait get the same answer.
        let mut known = self.known.lock().await;
        if let Some(known) = known.get(&trust.issuer) {
            let has_key = kid.is_none_or(|kid| known.keys.find(kid).is_some());
            let age = known.asked.elapsed();
            if has_key && age < KEEP || age < ASK_AGAIN {
                return known.keys();
            }
        }
        match self.ask(&trust.issuer).await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                known.insert(
                    trust.issuer.clone(),
                    Known {
                        keys: keys.clone(),
                        asked: Instant::now(),
                    },
                );
                Ok(keys)
            }
            Err(error) => {
                tracing::warn!(
                    issuer = trust.issuer,
                    error,
                    "ask an issuer of CI tokens for its keys"
                );
                // Also noted when it never gave any: whoever names it must not have it asked each time,
                // while the jobs of others wait.
                let none = || Known {
                    keys: Arc::new(JwkSet { keys: Vec::new() }),
                    asked: Instant::now(),
                };
                let known = known.entry(trust.issuer.clone()).or_insert_with(none);
                known.asked = Instant::now();
                known.keys()
            }
        }
    }
}

impl Login {
    /// Whom the token of a CI system stands for: the first trust that it fits, in order of names.
    pub async fn by_ci_token(
        &self,
        token: &SecretString,
        client: Option<IpAddr>,
    ) -> Result<Principal, Denied> {
        let text = token.expose_secret();
        let issuer = claimed_issuer(text).filter(|_| text.len() <= TOKEN_MAX);
        let issuer = issuer.ok_or(Denied::Token("it is not a token of a CI system"))?;
        let now_ms = wall_ms();
        let is_of = |account: &Account| {
            account.kind() == AccountKind::Ci
                && !account.is_expired(now_ms)
                && account
                    .record
                    .ci
                    .as_ref()
                    .is_some_and(|ci| ci.issuer == issuer)
        };
        let trusted: Vec<Account> = self.view().accounts()?.into_iter().filter(is_of).collect();
        let _turn = self
            .inner
            .throttle
            .wait(super::CI_NAME, client)
            .await
            .ok_or(Denied::Busy)?;
        let kid = jsonwebtoken::decode_header(text)
            .ok()
            .and_then(|header| header.kid);
        let mut why = Denied::Token("no CI system of its issuer is trusted here");
        for account in trusted {
            let trust = account.record.ci.clone().unwrap_or_default();
            let good = match self.inner.ci.keys(&trust, kid.as_deref()).await {
                Ok(keys) => is_good(text, &trust, &keys),
                Err(denied) => Err(denied),
            };
            match good {
                Ok(()) => {
                    let credential = CredentialId(format!("{:016x}", account.record.index));
                    let who = Who::Account {
                        name: account.name.clone(),
                        credential,
                    };
                    self.inner.throttle.succeeded(super::CI_NAME, client);
                    if let Some(principal) = self.live(Principal::new(who), &account)? {
                        return Ok(principal);
                    }
                }
                Err(denied) => why = denied,
            }
        }
        // An issuer that is away is no guess.
        if !matches!(why, Denied::NotYet(_)) {
            self.inner.throttle.failed(super::CI_NAME, client);
        }
        Err(why)
    }
}

#[cfg(fuzzing)]
pub mod fuzzing {
    use super::*;

    pub fn claims_of_ci(text: &str) {
        let _ = claimed_issuer(text);
        let none = JwkSet { keys: Vec::new() };
        assert!(is_good(text, &CiTrust::default(), &none).is_err());
        assert!(matches("*", text) && matches(text, text) || text.contains('*'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::KeyPair;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::EncodingKey;
    use jsonwebtoken::Header;
    use serde_json::json;

    fn trust(claims: &[(&str, &str)]) -> CiTrust {
        CiTrust {
            issuer: "https://ci.example".to_owned(),
            audience: "registry".to_owned(),
            claims: claims
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            jwks: String::new(),
        }
    }

    #[test]
    fn a_claim_may_be_a_glob() {
        for (wanted, found, fits) in [
            ("acme/app", "acme/app", true),
            ("acme/app", "acme/apps", false),
            ("acme/*", "acme/app", true),
            ("acme/*", "acmes/app", false),
            ("*", "", true),
            (
                "repo:acme/*:ref:*/main",
                "repo:acme/app:ref:refs/heads/main",
                true,
            ),
            (
                "repo:acme/*:ref:*/main",
                "repo:acme/app:ref:refs/heads/dev",
                false,
            ),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(wanted, found), fits, "{wanted} {found}");
        }
    }

    #[test]
    fn a_token_needs_issuer_audience_time_claims_and_key() {
        let pkcs8 = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(
            &aws_lc_rs::rand::SystemRandom::new(),
        )
        .unwrap();
        let key = EncodingKey::from_ed_der(pkcs8.as_ref());
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k1"});
        let keys: JwkSet = serde_json::from_value(json!({"keys": [jwk]})).unwrap();
        let token = |claims: &Value, kid: &str| {
            let header = Header {
                kid: Some(kid.to_owned()),
                ..Header::new(Algorithm::EdDSA)
            };
            jsonwebtoken::encode(&header, claims, &key).unwrap()
        };
        let exp = wall_ms() / 1000 + 60;
        let good = json!({"iss": "https://ci.example", "aud": "registry", "exp": exp, "repository": "acme/app", "protected": true});
        let trust = trust(&[("repository", "acme/*"), ("protected", "true")]);
        is_good(&token(&good, "k1"), &trust, &keys).unwrap();
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            token(&claims, "k1")
        };
        for bad in [
            with("iss", json!("https://other.example")),
            with("aud", json!("other")),
            with("exp", json!(exp - 1000)),
            with("repository", json!("evil/app")),
            with("protected", json!(false)),
            with("repository", json!(["acme/app"])),
            token(&good, "k2"),
            "x".to_owned(),
        ] {
            assert!(is_good(&bad, &trust, &keys).is_err());
        }
        let secret = EncodingKey::from_secret(b"k");
        let header = Header {
            kid: Some("k1".to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        let swapped = jsonwebtoken::encode(&header, &good, &secret).unwrap();
        assert!(is_good(&swapped, &trust, &keys).is_err());
    }

    #[test]
    fn keys_are_asked_for_over_https_and_no_issuer_leads_to_what_is_here() {
        let far = "https://ci.example";
        let near = "http://127.0.0.1:9";
        for (url, issuer) in [
            ("https://ci.example/x", far),
            ("https://keys.example/x", far),
            ("http://127.0.0.1:9/x", near),
            ("http://localhost/x", near),
            ("https://keys.example/x", near),
        ] {
            assert!(is_askable(url, issuer), "{url} {issuer}");
        }
        for (url, issuer) in [
            ("http://ci.example/", far),
            ("http://127.0.0.1:9/x", far),
            ("https://127.0.0.1:9/x", far),
            ("https://[::1]/x", far),
            ("file:///etc/passwd", far),
            ("https://user@ci.example/", far),
            ("http://169.254.169.254/", near),
            ("x", far),
        ] {
            assert!(!is_askable(url, issuer), "{url} {issuer}");
        }
    }
}
