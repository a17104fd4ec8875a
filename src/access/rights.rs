//! Rights, and grants of them.

use super::pattern::Pattern;
use crate::oci::RepositoryName;
use crate::proto::state::v1 as pb;
use crate::spelling;
use std::fmt;
use std::ops::BitAnd;
use std::ops::BitOr;
use std::str::FromStr;

/// A set of them. `admin` includes the others.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights(u32);

impl Rights {
    pub const NONE: Rights = Rights(0);
    /// Read manifests, tags, blobs.
    pub const PULL: Rights = Rights(1);
    /// Send blobs and manifests, and name them by a tag that is not there yet.
    pub const CREATE: Rights = Rights(2);
    /// The same, and move a tag that is there to another manifest.
    pub const OVERWRITE: Rights = Rights(4);
    /// Take away manifests, tags, blobs.
    pub const DELETE: Rights = Rights(8);
    /// All of these, and tokens, visibility and members of what the grant is for.
    pub const ADMIN: Rights = Rights(31);
    pub const PUSH: Rights = Rights(6);

    /// As stored; bits that this release does not know grant nothing, and neither does that of an
    /// admin without all the others.
    pub fn from_bits(bits: u32) -> Rights {
        const ALL_BUT_ADMIN: u32 = 15;
        match bits & Rights::ADMIN.0 {
            all if all == Rights::ADMIN.0 => Rights::ADMIN,
            some => Rights(some & ALL_BUT_ADMIN),
        }
    }

    pub fn bits(self) -> u32 {
        self.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of `other`.
    pub fn has(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// At least one of `other`.
    pub fn has_any(self, other: Rights) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Rights {
    type Output = Rights;

    fn bitor(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

impl BitAnd for Rights {
    type Output = Rights;

    fn bitand(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }
}

/// As they are typed, the widest word first.
const WORDS: [(&str, Rights); 6] = [
    ("admin", Rights::ADMIN),
    ("pull", Rights::PULL),
    ("push", Rights::PUSH),
    ("create", Rights::CREATE),
    ("overwrite", Rights::OVERWRITE),
    ("delete", Rights::DELETE),
];

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = Rights::NONE;
        for (word, rights) in WORDS {
            if self.has(rights) && !told.has(rights) {
                let comma = if told.is_empty() { "" } else { "," };
                write!(f, "{comma}{word}")?;
                told = told | rights;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct GrantInvalid(String);

impl FromStr for Rights {
    type Err = GrantInvalid;

    fn from_str(text: &str) -> Result<Rights, GrantInvalid> {
        let mut all = Rights::NONE;
        for word in text.split(',').map(str::trim) {
            let known = WORDS.iter().find(|(known, _)| *known == word);
            let Some((_, rights)) = known else {
                let words = || WORDS.iter().map(|(word, _)| *word);
                let shown: String = word.chars().take(40).collect();
                let advice = match spelling::nearest(word, words()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("the rights are {}", words().collect::<Vec<_>>().join(", ")),
                };
                return Err(GrantInvalid(format!("{shown:?} is not a right: {advice}")));
            };
            all = all | *rights;
        }
        Ok(all)
    }
}

/// `team/*:pull,push`: these rights to these repositories, until it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub pattern: Pattern,
    pub rights: Rights,
    /// Wall clock, milliseconds since 1970; 0: it does not end.
    pub expires_at_ms: u64,
}

impl Grant {
    /// What it gives there at that time.
    pub fn rights_to(&self, repository: &RepositoryName, now_ms: u64) -> Rights {
        match self.is_good(now_ms) && self.pattern.matches(repository) {
            true => self.rights,
            false => Rights::NONE,
        }
    }

    pub fn is_good(&self, now_ms: u64) -> bool {
        !super::is_over(self.expires_at_ms, now_ms)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pattern, self.rights)
    }
}

impl FromStr for Grant {
    type Err = GrantInvalid;

    fn from_str(text: &str) -> Result<Grant, GrantInvalid> {
        let Some((pattern, rights)) = text.rsplit_once(':') else {
            return Err(GrantInvalid(format!(
                "a grant is PATTERN:RIGHT[,RIGHT…], as 'team/*:pull,push'; {:?} names no right",
                text.chars().take(80).collect::<String>()
            )));
        };
        let pattern = pattern.parse();
        Ok(Grant {
            pattern: pattern.map_err(|error| GrantInvalid(format!("{error}")))?,
            rights: rights.parse()?,
            expires_at_ms: 0,
        })
    }
}

impl From<&Grant> for pb::GrantRecord {
    fn from(grant: &Grant) -> pb::GrantRecord {
        pb::GrantRecord {
            pattern: grant.pattern.to_string(),
            rights: grant.rights.bits(),
            expires_at_ms: grant.expires_at_ms,
        }
    }
}

/// As strict as what an operator typed: apply trusts no proposer.
impl TryFrom<&pb::GrantRecord> for Grant {
    type Error = GrantInvalid;

    fn try_from(record: &pb::GrantRecord) -> Result<Grant, GrantInvalid> {
        let pattern = record.pattern.parse();
        let rights = Rights::from_bits(record.rights);
        if rights.is_empty() || rights.bits() != record.rights {
            return Err(GrantInvalid(format!(
                "a grant of no known right to {}",
                record.pattern
            )));
        }
        Ok(Grant {
            pattern: pattern.map_err(|error| GrantInvalid(format!("{error}")))?,
            rights,
            expires_at_ms: record.expires_at_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn rights_are_written_as_they_are_read() {
        for text in [
            "pull",
            "pull,push",
            "pull,create",
            "overwrite,delete",
            "admin",
            "push",
        ] {
            let rights: Rights = text.parse().unwrap();
            assert_eq!(rights.to_string(), text);
        }
        assert_eq!("create,overwrite".parse::<Rights>().unwrap(), Rights::PUSH);
        assert!(Rights::ADMIN.has(Rights::PUSH | Rights::PULL | Rights::DELETE));
        assert!(!(Rights::PUSH | Rights::PULL | Rights::DELETE).has(Rights::ADMIN));
        let told = "pul".parse::<Rights>().unwrap_err().to_string();
        assert!(told.contains("did you mean pull?"), "{told}");
        for bad in ["", "pull,", "PULL", "*", "pull push"] {
            assert!(bad.parse::<Rights>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grant_ends_with_its_time() {
        let mut grant: Grant = "team/*:pull,push".parse().unwrap();
        let app = "team/app".parse().unwrap();
        assert_eq!(grant.rights_to(&app, u64::MAX), Rights::PULL | Rights::PUSH);
        grant.expires_at_ms = 10;
        assert_eq!(grant.rights_to(&app, 9), Rights::PULL | Rights::PUSH);
        assert_eq!(grant.rights_to(&app, 10), Rights::NONE);
        assert_eq!(grant.rights_to(&"teams".parse().unwrap(), 9), Rights::NONE);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_records_come_back(text in any::<String>(), bits in 1u32..17) {
            let bits = if bits == 16 { 31 } else { bits };
            let _ = text.parse::<Grant>();
            let grant = Grant {
                pattern: "a/*".parse().unwrap(),
                rights: Rights::from_bits(bits),
                expires_at_ms: u64::from(bits),
            };
            let record = pb::GrantRecord::from(&grant);
            assert_eq!(Grant::try_from(&record), Ok(grant.clone()));
            let again: Grant = grant.to_string().parse().unwrap();
            assert_eq!(again.rights, grant.rights);
        }
    }
}
