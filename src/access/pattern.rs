//! The repositories that a grant is for.

use crate::oci::NameInvalid;
use crate::oci::RepositoryName;
use crate::policy::Prefix;
use std::fmt;
use std::str::FromStr;

/// `*`, one repository, or `acme/*`: `acme` itself and all that lies under it, the same as the
/// prefix `acme` of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    All,
    Under(RepositoryName),
    Only(RepositoryName),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a grant is for * (all repositories), acme/* (acme and all under it) or one repository: {0}"
)]
pub struct PatternInvalid(#[from] NameInvalid);

/// `name` is `prefix`, or lies under it.
fn lies_under(name: &RepositoryName, prefix: &RepositoryName) -> bool {
    let rest = name.as_str().strip_prefix(prefix.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Pattern {
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        match self {
            Pattern::All => true,
            Pattern::Under(prefix) => lies_under(repository, prefix),
            Pattern::Only(name) => name == repository,
        }
    }

    /// Everything that `other` is for, this one is for too.
    pub fn covers(&self, other: &Pattern) -> bool {
        match (self, other) {
            (Pattern::All, _) => true,
            (_, Pattern::All) | (Pattern::Only(_), Pattern::Under(_)) => false,
            (_, Pattern::Under(name) | Pattern::Only(name)) => self.matches(name),
        }
    }
}

impl From<&Prefix> for Pattern {
    fn from(prefix: &Prefix) -> Pattern {
        match prefix {
            Prefix::All => Pattern::All,
            Prefix::Under(name) => Pattern::Under(name.clone()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::All => f.write_str("*"),
            Pattern::Under(prefix) => write!(f, "{prefix}/*"),
            Pattern::Only(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternInvalid;

    fn from_str(text: &str) -> Result<Pattern, PatternInvalid> {
        match text.strip_suffix("/*") {
            _ if text == "*" => Ok(Pattern::All),
            Some(prefix) => Ok(Pattern::Under(prefix.parse()?)),
            None => Ok(Pattern::Only(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_goes_by_whole_components() {
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        for (of, yes, no) in [
            ("*", vec!["a", "a/b"], vec![]),
            (
                "acme/*",
                vec!["acme", "acme/app", "acme/a/b"],
                vec!["acmex", "acme-x/app", "x/acme"],
            ),
            (
                "acme/app",
                vec!["acme/app"],
                vec!["acme", "acme/app/x", "acme/apps"],
            ),
        ] {
            for repository in yes {
                assert!(pattern(of).matches(&name(repository)), "{of} {repository}");
            }
            for repository in no {
                assert!(!pattern(of).matches(&name(repository)), "{of} {repository}");
            }
        }
        for bad in ["", "/*", "**", "a*", "*/a", "A/*", "a/*/b", "a/**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn who_administers_a_prefix_reaches_nothing_beside_it() {
        for (of, other, is_covered) in [
            ("*", "*", true),
            ("*", "a/*", true),
            ("a/*", "*", false),
            ("a/*", "a/b/*", true),
            ("a/*", "a/b", true),
            ("a/*", "a", true),
            ("a/b/*", "a/*", false),
            ("a", "a/*", false),
            ("a", "a", true),
            ("a/*", "ab/*", false),
        ] {
            assert_eq!(
                pattern(of).covers(&pattern(other)),
                is_covered,
                "{of} {other}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_pattern_is_written_as_it_is_read(text in "([a-z]{1,3}(/[a-z]{1,3}){0,3}(/\\*)?)|\\*") {
            assert_eq!(pattern(&text).to_string(), text);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Pattern>();
        }

        #[test]
        fn what_is_covered_is_matched(
            of in "([a-c](/[a-c]){0,2}(/\\*)?)|\\*",
            other in "([a-c](/[a-c]){0,2}(/\\*)?)|\\*",
            name in "[a-c](/[a-c]){0,3}",
        ) {
            let (of, other, name) = (pattern(&of), pattern(&other), name.parse().unwrap());
            if of.covers(&other) && other.matches(&name) {
                assert!(of.matches(&name));
            }
        }
    }
}
