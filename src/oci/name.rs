//! Repository names, tags and references, by the grammar of the distribution spec ("Pulling
//! manifests"). Values of these types are well formed; nothing checks them again.

use super::digest::{Digest, DigestInvalid, shorten};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Clients put host and name into one string of at most this length.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The spec's `<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);

/// A tag, or the digest of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a repository name: components of a-z and 0-9, joined inside by '.', '_', '__' or \
     dashes, separated by '/', at most 255 characters in all"
)]
pub struct NameInvalid(pub String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a tag: 1 to 128 of letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
)]
pub struct TagInvalid(pub String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceInvalid {
    #[error(transparent)]
    Tag(#[from] TagInvalid),
    #[error(transparent)]
    Digest(#[from] DigestInvalid),
}

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_separator = |text: &str| {
        matches!(text, "." | "_" | "__") || (!text.is_empty() && text.bytes().all(|b| b == b'-'))
    };
    let mut rest = component;
    loop {
        let word = rest.bytes().take_while(|b| is_alphanumeric(*b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest
            .bytes()
            .take_while(|b| matches!(b, b'.' | b'_' | b'-'))
            .count();
        if !is_separator(&rest[..separator]) {
            return false;
        }
        rest = &rest[separator..];
    }
}

impl FromStr for RepositoryName {
    type Err = NameInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= NAME_MAX && text.split('/').all(is_component) {
            Ok(RepositoryName(text.into()))
        } else {
            Err(NameInvalid(shorten(text)))
        }
    }
}

impl FromStr for Tag {
    type Err = TagInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let is_rest = |b: u8| is_first(b) || b == b'.' || b == b'-';
        let bytes = text.as_bytes();
        let fits = (1..=TAG_MAX).contains(&bytes.len())
            && is_first(bytes[0])
            && bytes.iter().all(|b| is_rest(*b));
        if fits {
            Ok(Tag(text.into()))
        } else {
            Err(TagInvalid(shorten(text)))
        }
    }
}

/// A reference with a ':' is a digest or nothing: never a tag.
impl FromStr for Reference {
    type Err = ReferenceInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            Ok(Reference::Digest(text.parse()?))
        } else {
            Ok(Reference::Tag(text.parse()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn names_follow_the_grammar() {
        for good in [
            "a",
            "a/b",
            "team/app-1",
            "a.b",
            "a_b",
            "a__b",
            "a---b",
            "0/1/2",
            "blobs/uploads",
        ] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", ".a", "a.",
            "_a", "a b", "a:b", "é", "a/-b", "a-_b",
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
    }

    #[test]
    fn a_colon_makes_a_digest_or_nothing() {
        assert!(matches!("v1".parse(), Ok(Reference::Tag(_))));
        assert!("sha256:x".parse::<Reference>().is_err());
        for bad in ["", ".a", "-a", "a/b", "a b", &"t".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_made_by_the_grammar_are_names(name in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}){0,3}") {
            assert_eq!(name.parse::<RepositoryName>().unwrap().as_str(), name);
        }

        #[test]
        fn tags_made_by_the_grammar_are_tags(tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}") {
            assert_eq!(tag.parse::<Tag>().unwrap().as_str(), tag);
        }

        /// From an alphabet in which about half of all texts are well formed.
        #[test]
        fn names_and_tags_are_what_the_expressions_of_the_spec_match(text in "[a0._/-]{0,7}|[aA0._/:-]{0,5}") {
            let spec = |expression: &str| regex::Regex::new(&format!("^(?:{expression})$")).unwrap().is_match(&text);
            let name = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(\\/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*";
            assert_eq!(text.parse::<RepositoryName>().is_ok(), spec(name), "{text:?}");
            assert_eq!(text.parse::<Tag>().is_ok(), spec("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"), "{text:?}");
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<RepositoryName>();
            let _ = text.parse::<Reference>();
        }
    }
}
