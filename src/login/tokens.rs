//! Short-lived tokens: signed with an Ed25519 key of the replicated state, so that every region takes
//! what any of them gave out (JWT, RFC 7519; claims as distribution's token specification has them).
//!
//! What must stay true: one algorithm; the key comes from the state by its id and from nowhere else; a
//! token is good for this cluster only, and only as long as what it was made from.

use super::Denied;
use super::Login;
use super::verified::Known;
use crate::access::CredentialId;
use crate::access::Principal;
use crate::access::Rights;
use crate::access::Scope;
use crate::access::Who;
use crate::clock::wall_ms;
use crate::metadata::accounts::SigningKey;
use crate::oci::Algorithm as DigestAlgorithm;
use crate::oci::Digest;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use jsonwebtoken::Validation;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde::Deserialize;
use serde::Serialize;
use std::sync::Arc;

pub const ACCESS_SECONDS: u64 = 300;
const REFRESH_SECONDS: u64 = 90 * 24 * 3600;
/// Clocks of two regions may differ.
const LEEWAY_SECONDS: u64 = 60;
const TOKEN_MAX: usize = 24 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Use {
    Access,
    Refresh,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The account; empty for nobody.
    sub: String,
    /// What it logged in with.
    cred: String,
    #[serde(rename = "use")]
    usage: Use,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    #[serde(default)]
    access: Vec<Scope>,
}

/// Only what our own tokens have: no key, no address of one, nothing that is critical.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnHeader {
    alg: String,
    typ: String,
    kid: String,
}

/// A token, for whoever asked; shown once.
pub struct Issued {
    pub token: SecretString,
    pub refresh: Option<SecretString>,
    pub issued_at_ms: u64,
    pub expires_in: u64,
    pub scopes: Vec<Scope>,
}

fn public_key(key: &SigningKey) -> Option<DecodingKey> {
    let pair = Ed25519KeyPair::from_pkcs8(&key.record.pkcs8).ok()?;
    let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    DecodingKey::from_ed_components(&public).ok()
}

fn sign(key: &SigningKey, claims: &Claims) -> Result<SecretString, Denied> {
    let header = Header {
        kid: Some(key.kid.clone()),
        ..Header::new(Algorithm::EdDSA)
    };
    let signing = EncodingKey::from_ed_der(&key.record.pkcs8);
    let token = jsonwebtoken::encode(&header, claims, &signing);
    token
        .map(SecretString::from)
        .map_err(|error| Denied::Io(std::io::Error::other(error)))
}

/// The claims of a token of this cluster that is good now, and which key has signed it.
fn verify(
    token: &str,
    keys: &[SigningKey],
    cluster: &str,
    wanted: Use,
) -> Result<(Claims, String), Denied> {
    let bad = |_| Denied::Token("it is not one of this registry");
    if token.len() > TOKEN_MAX {
        return Err(Denied::Token("it is too long"));
    }
    let (head, _) = token
        .split_once('.')
        .ok_or(Denied::Token("it is not one of this registry"))?;
    let head = URL_SAFE_NO_PAD.decode(head).map_err(|_| bad(()))?;
    let head: OwnHeader = serde_json::from_slice(&head).map_err(|_| bad(()))?;
    if head.alg != "EdDSA" || head.typ != "JWT" {
        return Err(bad(()));
    }
    let key = keys.iter().find(|key| key.kid == head.kid);
    let key = key.ok_or(Denied::Token("no key of this cluster has signed it"))?;
    let key = public_key(key).ok_or(Denied::Token("the key that signed it cannot be read"))?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[cluster]);
    validation.set_issuer(&[cluster]);
    validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss"]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_SECONDS;
    let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation);
    let claims = decoded.map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::ExpiredSignature => Denied::Token("it has expired"),
        jsonwebtoken::errors::ErrorKind::ImmatureSignature => {
            Denied::Token("its time has not come")
        }
        jsonwebtoken::errors::ErrorKind::InvalidAudience
        | jsonwebtoken::errors::ErrorKind::InvalidIssuer => {
            Denied::Token("it is for another registry")
        }
        _ => bad(()),
    })?;
    match claims.claims.usage == wanted {
        true => Ok((claims.claims, head.kid)),
        false => Err(Denied::Token("it is of another kind")),
    }
}

fn who(claims: &Claims) -> Result<Who, Denied> {
    if claims.sub.is_empty() {
        return Ok(Who::Anonymous);
    }
    let name = claims.sub.parse();
    Ok(Who::Account {
        name: name.map_err(|_| Denied::Token("it names no account"))?,
        credential: CredentialId(claims.cred.clone()),
    })
}

impl Login {
    /// What tokens are for, and signed as: `service` in a challenge.
    pub fn service(&self) -> String {
        let cluster = self.inner.metadata.identity().cluster();
        cluster
            .map(|cluster| cluster.cluster_id)
            .unwrap_or_default()
    }

    fn checked(&self, token: &SecretString, wanted: Use) -> Result<(Claims, String), Denied> {
        let keys = self.view().signing_keys()?;
        verify(token.expose_secret(), &keys, &self.service(), wanted)
    }

    fn still_good(&self, principal: Principal) -> Result<Principal, Denied> {
        match self.view().is_live(&principal, wall_ms())? {
            true => Ok(principal),
            false => Err(Denied::Token(
                "what it was made from was taken away, changed or has expired",
            )),
        }
    }

    pub(super) fn by_token(&self, token: &SecretString) -> Result<Principal, Denied> {
        let (now_ms, text) = (wall_ms(), token.expose_secret());
        let hash = Digest::of(DigestAlgorithm::Sha256, text.as_bytes())
            .bytes()
            .to_vec();
        let view = self.view();
        let known = self.inner.tokens.get(&hash, now_ms / 1000);
        // Not one whose key was dropped since.
        let principal = match known {
            Some(known) if view.has_signing_key(&known.kid)? => known.principal,
            _ => {
                let (claims, kid) = self.checked(token, Use::Access)?;
                let principal = Arc::new(Principal {
                    who: who(&claims)?,
                    scopes: Some(claims.access.into()),
                });
                let known = Known {
                    principal: principal.clone(),
                    kid,
                    expires_s: claims.exp,
                };
                self.inner.tokens.put(hash, known, now_ms / 1000);
                principal
            }
        };
        let principal = self.still_good((*principal).clone())?;
        if let Some(name) = principal.account() {
            self.inner.used.note(name, now_ms);
        }
        Ok(principal)
    }

    /// Whom a refresh token stands for.
    pub fn by_refresh_token(&self, token: &SecretString) -> Result<Principal, Denied> {
        if !self.inner.has_accounts {
            return Ok(Principal::new(Who::Everyone));
        }
        let (claims, _) = self.checked(token, Use::Refresh)?;
        self.still_good(Principal::new(who(&claims)?))
    }

    /// A token for what is asked, as far as the principal may do that now; less is no error.
    pub fn issue(
        &self,
        principal: &Principal,
        asked: Vec<Scope>,
        offline: bool,
    ) -> Result<Issued, Denied> {
        let (view, now_ms) = (self.view(), wall_ms());
        let whole = Principal::new(principal.who.clone());
        let mut scopes = Vec::new();
        for scope in asked {
            let allowed = match scope.repository() {
                Some(repository) => view.rights(&whole, &repository, now_ms)?,
                None if scope.is_catalog() => {
                    scopes.push(Scope {
                        actions: vec!["*".to_owned()],
                        ..scope
                    });
                    continue;
                }
                None => Rights::NONE,
            };
            scopes.extend(scope.limited(allowed));
        }
        let keys = view.signing_keys()?;
        let key = keys.iter().find(|key| key.record.retired_at_ms == 0);
        let key = key.ok_or(Denied::NotYet(
            "no key to sign tokens with is there yet; try again",
        ))?;
        let (now_s, cluster) = (now_ms / 1000, self.service());
        let (sub, cred) = match &principal.who {
            Who::Account { name, credential } => (name.to_string(), credential.0.clone()),
            _ => (String::new(), String::new()),
        };
        let mut claims = Claims {
            iss: cluster.clone(),
            aud: cluster,
            sub,
            cred,
            usage: Use::Access,
            iat: now_s,
            nbf: now_s,
            exp: now_s + ACCESS_SECONDS,
            jti: hex::encode(rand::random::<[u8; 8]>()),
            access: scopes.clone(),
        };
        let token = sign(key, &claims)?;
        let refresh = match offline && principal.account().is_some() {
            true => {
                claims.usage = Use::Refresh;
                claims.exp = now_s + REFRESH_SECONDS;
                claims.access = Vec::new();
                Some(sign(key, &claims)?)
            }
            false => None,
        };
        Ok(Issued {
            token,
            refresh,
            issued_at_ms: now_s * 1000,
            expires_in: ACCESS_SECONDS,
            scopes,
        })
    }
}

#[cfg(fuzzing)]
pub mod fuzzing {
    use super::super::first::new_signing_key;
    use super::*;
    use std::sync::LazyLock;

    /// Of a cluster whose key nobody knows.
    pub fn is_token(text: &str) -> bool {
        static KEY: LazyLock<Option<SigningKey>> = LazyLock::new(|| {
            let put = new_signing_key(1, false).ok()?;
            let (kid, record) = ("1".to_owned(), put.record?);
            Some(SigningKey { kid, record })
        });
        verify(text, KEY.as_slice(), "c", Use::Access).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::first::new_signing_key;
    use super::*;
    use serde_json::Value;
    use serde_json::json;

    const CLUSTER: &str = "c1";

    fn key() -> SigningKey {
        let put = new_signing_key(1, false).unwrap();
        SigningKey {
            kid: put.kid,
            record: put.record.unwrap(),
        }
    }

    fn claims() -> Claims {
        let now = wall_ms() / 1000;
        Claims {
            iss: CLUSTER.to_owned(),
            aud: CLUSTER.to_owned(),
            sub: "ann".to_owned(),
            cred: "00".to_owned(),
            usage: Use::Access,
            iat: now,
            nbf: now,
            exp: now + 300,
            jti: "x".to_owned(),
            access: Vec::new(),
        }
    }

    fn part(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// The same claims and signature under another header.
    fn with_header(token: &str, header: &Value) -> String {
        let (_, rest) = token.split_once('.').unwrap();
        format!("{}.{rest}", part(header))
    }

    #[test]
    fn a_token_of_this_cluster_is_good_and_no_other() {
        let (ours, other) = (key(), key());
        let token = |claims: &Claims, key: &SigningKey| {
            sign(key, claims).unwrap().expose_secret().to_owned()
        };
        let check = |token: &str| verify(token, std::slice::from_ref(&ours), CLUSTER, Use::Access);
        let good = token(&claims(), &ours);
        assert_eq!(check(&good).unwrap().0.sub, "ann");
        let now = wall_ms() / 1000;
        for (what, bad) in [
            (
                "expired",
                Claims {
                    exp: now - LEEWAY_SECONDS - 1,
                    ..claims()
                },
            ),
            (
                "too early",
                Claims {
                    nbf: now + LEEWAY_SECONDS + 9,
                    ..claims()
                },
            ),
            (
                "other audience",
                Claims {
                    aud: "c2".to_owned(),
                    ..claims()
                },
            ),
            (
                "other issuer",
                Claims {
                    iss: "c2".to_owned(),
                    ..claims()
                },
            ),
            (
                "a refresh token",
                Claims {
                    usage: Use::Refresh,
                    ..claims()
                },
            ),
        ] {
            assert!(check(&token(&bad, &ours)).is_err(), "{what}");
        }
        assert!(
            check(&token(&claims(), &other)).is_err(),
            "signed by another"
        );
        let forged = SigningKey {
            kid: ours.kid.clone(),
            ..other
        };
        assert!(
            check(&token(&claims(), &forged)).is_err(),
            "signed by another under our key's name"
        );
        let mut cut = good.clone();
        cut.truncate(good.len() - 4);
        assert!(check(&cut).is_err(), "cut");
        let retired = SigningKey {
            record: crate::proto::state::v1::SigningKeyRecord {
                retired_at_ms: 5,
                ..ours.record.clone()
            },
            ..ours.clone()
        };
        assert!(
            verify(&good, &[retired], CLUSTER, Use::Access).is_ok(),
            "the key signs no more, and is known"
        );
    }

    /// CVE-2025-24976 (a key in the header is trusted), and what else is tried on headers.
    #[test]
    fn cve_2025_24976_no_header_talks_its_way_in() {
        let ours = key();
        let good = sign(&ours, &claims()).unwrap().expose_secret().to_owned();
        let kid = ours.kid.clone();
        for header in [
            json!({"alg": "none", "typ": "JWT", "kid": kid}),
            json!({"alg": "None", "typ": "JWT", "kid": kid}),
            json!({"alg": "HS256", "typ": "JWT", "kid": kid}),
            json!({"alg": "RS256", "typ": "JWT", "kid": kid}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": format!("../{kid}")}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": format!("{kid}\u{0}")}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid, "jku": "http://127.0.0.1/"}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid, "x5u": "http://127.0.0.1/"}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid, "crit": ["exp"]}),
            json!({"alg": "EdDSA", "typ": "JWT"}),
            json!([]),
        ] {
            let keys = std::slice::from_ref(&ours);
            let told = verify(&with_header(&good, &header), keys, CLUSTER, Use::Access);
            assert!(told.is_err(), "{header}");
        }
        // Signed as if our public key were a shared secret.
        let public = Ed25519KeyPair::from_pkcs8(&ours.record.pkcs8).unwrap();
        let secret = EncodingKey::from_secret(public.public_key().as_ref());
        let header = Header {
            kid: Some(kid.clone()),
            ..Header::new(Algorithm::HS256)
        };
        let swapped = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
        assert!(verify(&swapped, std::slice::from_ref(&ours), CLUSTER, Use::Access).is_err());
        let none = format!(
            "{}.{}.",
            part(&json!({"alg": "none", "typ": "JWT", "kid": kid})),
            part(&json!(claims()))
        );
        for bad in [
            "",
            ".",
            "..",
            "a.b.c",
            none.as_str(),
            &"x".repeat(TOKEN_MAX + 1),
        ] {
            assert!(verify(bad, std::slice::from_ref(&ours), CLUSTER, Use::Access).is_err());
        }
    }
}
