//! What a client shows in its Authorization header (RFC 9110, 11.4; RFC 7617; RFC 6750).

use super::Denied;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::SecretString;

/// Longer ones are no password of ours: each is hashed as a whole.
const PASSWORD_MAX: usize = 8 << 10;

#[derive(Clone, Debug)]
pub enum Shown {
    Nothing,
    Basic {
        name: String,
        password: SecretString,
    },
    Bearer(SecretString),
}

impl Shown {
    pub fn in_headers(headers: &HeaderMap) -> Result<Shown, Denied> {
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = shown.next() else {
            return Ok(Shown::Nothing);
        };
        if shown.next().is_some() {
            return Err(Denied::Malformed("it is there twice"));
        }
        let text = header
            .to_str()
            .map_err(|_| Denied::Malformed("it is not ASCII"))?;
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            return basic(rest);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return match rest {
                "" => Err(Denied::Malformed("a Bearer without a token")),
                token => Ok(Shown::Bearer(token.to_owned().into())),
            };
        }
        Err(Denied::Malformed("its scheme is neither Basic nor Bearer"))
    }

    pub fn name(&self) -> Option<&str> {
        match self {
            Shown::Basic { name, .. } => Some(name),
            _ => None,
        }
    }
}

/// The name ends at the first colon; the password may hold more of them.
fn basic(encoded: &str) -> Result<Shown, Denied> {
    let bytes = STANDARD.decode(encoded);
    let bytes = bytes.map_err(|_| Denied::Malformed("what follows Basic is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| Denied::Malformed("it is not UTF-8"))?;
    let Some((name, password)) = text.split_once(':') else {
        return Err(Denied::Malformed(
            "there is no colon between name and password",
        ));
    };
    if password.len() > PASSWORD_MAX {
        return Err(Denied::Malformed("the password is too long"));
    }
    match (name, password) {
        ("", "") => Ok(Shown::Nothing),
        _ => Ok(Shown::Basic {
            name: name.to_owned(),
            password: password.to_owned().into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::{any, proptest};
    use secrecy::ExposeSecret;

    fn shown(value: &[u8]) -> Result<Shown, Denied> {
        let value = HeaderValue::from_bytes(value).unwrap();
        Shown::in_headers(&[(AUTHORIZATION, value)].into_iter().collect())
    }

    fn pair(text: &str) -> Option<(String, String)> {
        let header = format!("bAsIc {}", STANDARD.encode(text));
        match shown(header.as_bytes()).ok()? {
            Shown::Basic { name, password } => Some((name, password.expose_secret().to_owned())),
            _ => None,
        }
    }

    #[test]
    fn a_password_may_hold_colons_and_anything_in_utf_8() {
        let found = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(pair("a:b"), found("a", "b"));
        assert_eq!(pair("a:b:c:"), found("a", "b:c:"));
        assert_eq!(pair("a:"), found("a", ""));
        assert_eq!(pair("ä:ö\u{0}"), found("ä", "ö\u{0}"));
        assert_eq!(pair("nobody"), None);
        assert!(shown(b"Basic !!!").is_err());
        assert!(
            shown(
                &[
                    b"Basic ".as_slice(),
                    STANDARD.encode([0xff, b':']).as_bytes()
                ]
                .concat()
            )
            .is_err()
        );
        assert!(shown(b"Basic \xff").is_err());
        let long = format!("a:{}", "x".repeat(PASSWORD_MAX + 1));
        assert_eq!(pair(&long), None);
    }

    #[test]
    fn other_schemes_are_told_apart_from_no_login() {
        assert!(matches!(
            Shown::in_headers(&HeaderMap::new()),
            Ok(Shown::Nothing)
        ));
        assert!(matches!(shown(b"bearer x"), Ok(Shown::Bearer(_))));
        for bad in ["", "Bearer", "Bearer ", "Digest x", "Negotiate", "Basic"] {
            assert!(shown(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert!(Shown::in_headers(&twice).is_err());
    }

    #[test]
    fn what_is_shown_is_not_printed() {
        let shown = shown(format!("Basic {}", STANDARD.encode("me:hunter2")).as_bytes()).unwrap();
        assert!(!format!("{shown:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_header_panics(value in any::<Vec<u8>>()) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let _ = Shown::in_headers(&[(AUTHORIZATION, value)].into_iter().collect());
            }
        }
    }
}
