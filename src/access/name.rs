//! The names of accounts and groups. They stand in logs, tables, headers and tokens, so nothing in
//! them needs to be escaped anywhere.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const MAX: usize = 128;

/// Names that something else goes by: who has not logged in, whoever speaks to a node's own socket,
/// and what clients send in place of a name.
const RESERVED: [&str; 5] = ["anonymous", "local", "everyone", "oidc", "token"];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct NameInvalid(String);

fn check(kind: &str, text: &str) -> Result<Arc<str>, NameInvalid> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"._@+-".contains(&b);
    let bytes = text.as_bytes();
    let fits = (1..=MAX).contains(&bytes.len())
        && bytes.iter().all(|b| inner(*b))
        && bytes[0].is_ascii_alphanumeric();
    if !fits {
        let shown: String = text.chars().take(40).collect();
        return Err(NameInvalid(format!(
            "{shown:?} is not a name of {kind}: use 1 to {MAX} of a-z, A-Z, 0-9 and . _ @ + -, beginning with a letter or digit"
        )));
    }
    if RESERVED.contains(&text) {
        return Err(NameInvalid(format!(
            "{text:?} is a word of the registry itself; choose another name for {kind}"
        )));
    }
    Ok(text.into())
}

macro_rules! name {
    ($type:ident, $kind:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameInvalid;

            fn from_str(text: &str) -> Result<Self, NameInvalid> {
                check($kind, text).map($type)
            }
        }
    };
}

name!(
    AccountName,
    "an account",
    "A user, a robot token, an access key or a trusted CI system: one name space."
);
name!(GroupName, "a group", "Users that share grants.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_escaping_anywhere() {
        for good in [
            "admin",
            "a",
            "ci+deploy@acme.example",
            "Robot_1",
            &"x".repeat(128),
        ] {
            assert!(good.parse::<AccountName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "a b",
            "a:b",
            "a/b",
            "<token>",
            "é",
            "a\n",
            "anonymous",
            "oidc",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<AccountName>().is_err(), "{bad}");
        }
    }
}
