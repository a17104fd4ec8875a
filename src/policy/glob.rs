//! Which tags a policy means: globs of `*` (any characters, also none) and `?` (exactly one),
//! separated by commas; nothing else has a meaning.
//!
//! What must stay true: matching takes no more steps than pattern times tag, whatever they are.

use crate::oci::Tag;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const MAX: usize = 256;

/// Tags that match one of its globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPattern(Arc<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a pattern of tags: letters, digits, '_', '.', '-', with '*' for any characters and '?' for one; \
     several are separated by commas, as v*,release-*; at most 256 characters in all"
)]
pub struct PatternInvalid(String);

impl TagPattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, tag: &Tag) -> bool {
        let tag = tag.as_str().as_bytes();
        self.0.split(',').any(|glob| matches(glob.as_bytes(), tag))
    }
}

impl FromStr for TagPattern {
    type Err = PatternInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_known = |b: u8| b.is_ascii_alphanumeric() || b"_.-*?".contains(&b);
        let is_glob = |glob: &str| !glob.is_empty() && glob.bytes().all(is_known);
        if text.len() <= MAX && text.split(',').all(is_glob) {
            Ok(TagPattern(text.into()))
        } else {
            Err(PatternInvalid(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// On a mismatch only the last star is widened: what the stars before it took stays good.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // The last star, and where what it takes ends.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (g, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn is_match(pattern: &str, tag: &str) -> bool {
        let pattern: TagPattern = pattern.parse().unwrap();
        pattern.matches(&tag.parse().unwrap())
    }

    #[test]
    fn a_pattern_means_whole_tags() {
        for (pattern, tag, expected) in [
            ("v*", "v1.0", true),
            ("v*", "v", true),
            ("v*", "dev1", false),
            ("v?", "v1", true),
            ("v?", "v10", false),
            ("*-final", "1-final", true),
            ("*-final", "1-final2", false),
            ("v*,release-*", "release-7", true),
            ("v*,release-*", "nightly", false),
            ("latest", "latest", true),
            ("latest", "Latest", false),
            ("a*b*c", "axxbyyc", true),
            ("v1.0", "v1x0", false),
        ] {
            assert_eq!(is_match(pattern, tag), expected, "{pattern} {tag}");
        }
    }

    #[test]
    fn what_no_tag_can_match_is_refused() {
        for bad in [
            "",
            ",",
            "v*,",
            "^v.*$",
            "[0-9]",
            "v 1",
            "é",
            "a/b",
            &"a".repeat(257),
        ] {
            assert!(bad.parse::<TagPattern>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn globs_match_what_the_same_regular_expression_matches(
            pattern in "[ab*?]{1,7}(,[ab*?]{1,3}){0,2}",
            tag in "[ab]{1,9}",
        ) {
            let alternatives: Vec<String> =
                pattern.split(',').map(|glob| glob.replace('*', ".*").replace('?', ".")).collect();
            let expression = regex::Regex::new(&format!("^(?:{})$", alternatives.join("|"))).unwrap();
            assert_eq!(is_match(&pattern, &tag), expression.is_match(&tag), "{pattern} {tag}");
        }

        #[test]
        fn no_text_panics(text in any::<String>(), tag in "[a-z*?]{1,128}") {
            if let (Ok(pattern), Ok(tag)) = (text.parse::<TagPattern>(), tag.parse()) {
                let _ = pattern.matches(&tag);
            }
        }
    }

    /// With a matcher that tries all ways, this does not end.
    #[test]
    fn many_stars_are_no_way_to_keep_a_node_busy() {
        let pattern = format!("{}b", "a*".repeat(120));
        assert!(!is_match(&pattern, &"a".repeat(128)));
    }
}
