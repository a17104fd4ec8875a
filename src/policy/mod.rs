//! What an operator may set for a prefix of the repositories: the keys, what each takes, and which
//! prefix counts. Pure: edge, state and command line read the same words by it.
//!
//! What must stay true: a value of these types is well formed; for each key the longest prefix
//! that sets it wins, else the whole registry's, else the cluster's own default.

mod copies;
mod effective;
mod glob;

pub use copies::Wanted;
pub use copies::count as count_copies;
pub use effective::Defaults;
pub use effective::Effective;
pub use effective::Found;
pub use effective::resolve;
pub use glob::TagPattern;

use crate::oci::NameInvalid;
use crate::oci::RepositoryName;
use crate::oci::Tag;
use crate::proto::state::v1 as pb;
use crate::spelling;
use std::fmt;
use std::str::FromStr;

/// The prefix that is the whole registry.
pub const ALL: &str = "*";

/// No cluster has more regions (design 6).
const MOST_REGIONS: u32 = 7;

/// Repositories by whole path components: `team` is `team` and `team/app`, and not `teams`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    All,
    Under(RepositoryName),
}

impl Prefix {
    pub fn as_str(&self) -> &str {
        match self {
            Prefix::All => ALL,
            Prefix::Under(name) => name.as_str(),
        }
    }

    /// This one, then what it lies under, from near to far; the last is the whole registry.
    fn upwards(&self) -> impl Iterator<Item = &str> {
        let own = match self {
            Prefix::All => None,
            Prefix::Under(name) => Some(name.as_str()),
        };
        fn parent<'a>(name: &&'a str) -> Option<&'a str> {
            Some(name.rsplit_once('/')?.0)
        }
        std::iter::successors(own, parent).chain([ALL])
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a prefix is * for the whole registry, or the path components that repositories begin with: {0}"
)]
pub struct PrefixInvalid(#[from] NameInvalid);

impl FromStr for Prefix {
    type Err = PrefixInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            ALL => Ok(Prefix::All),
            name => Ok(Prefix::Under(name.parse()?)),
        }
    }
}

impl From<&RepositoryName> for Prefix {
    fn from(name: &RepositoryName) -> Prefix {
        Prefix::Under(name.clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Ack,
    Copies,
    Sparse,
    Immutable,
    Visibility,
}

impl Key {
    pub const ALL: [Key; 5] = [
        Key::Ack,
        Key::Copies,
        Key::Sparse,
        Key::Immutable,
        Key::Visibility,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Key::Ack => "ack",
            Key::Copies => "copies",
            Key::Sparse => "sparse",
            Key::Immutable => "immutable",
            Key::Visibility => "visibility",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key or a value that a policy does not take, and what it takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(String);

impl FromStr for Key {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Key::ALL.into_iter().map(Key::as_str);
        if let Some(key) = Key::ALL.into_iter().find(|key| key.as_str() == text) {
            return Ok(key);
        }
        let shown: String = text.chars().take(40).collect();
        let advice = match spelling::nearest(text, known()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the keys are {}", known().collect::<Vec<_>>().join(", ")),
        };
        Err(Invalid(format!(
            "{shown:?} is not a key of a policy: {advice}"
        )))
    }
}

/// Which tags stay what they are once they exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Immutable {
    None,
    All,
    Matching(TagPattern),
}

impl Immutable {
    pub fn holds(&self, tag: &Tag) -> bool {
        match self {
            Immutable::None => false,
            Immutable::All => true,
            Immutable::Matching(pattern) => pattern.matches(tag),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Immutable::None => "false",
            Immutable::All => "true",
            Immutable::Matching(pattern) => pattern.as_str(),
        }
    }
}

impl FromStr for Immutable {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "true" => Ok(Immutable::All),
            "false" => Ok(Immutable::None),
            pattern => match pattern.parse() {
                Ok(pattern) => Ok(Immutable::Matching(pattern)),
                Err(error) => Err(Invalid(format!(
                    "immutable takes true, false or a pattern: {error}"
                ))),
            },
        }
    }
}

fn sparse_word(is_allowed: bool) -> &'static str {
    if is_allowed { "allow" } else { "refuse" }
}

fn visibility_word(is_public: bool) -> &'static str {
    if is_public { "public" } else { "private" }
}

fn regions(key: Key, number: Option<u32>) -> Result<u32, Invalid> {
    number
        .filter(|n| (1..=MOST_REGIONS).contains(n))
        .ok_or_else(|| {
            Invalid(format!(
                "{key} takes a number of regions, from 1 to {MOST_REGIONS}"
            ))
        })
}

/// What one prefix sets; a key that it leaves out comes from further up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Regions that must hold a blob before a push that names it is acknowledged.
    pub ack: Option<u32>,
    /// Regions that are to hold it in the end.
    pub copies: Option<u32>,
    /// An image may name blobs that are absent.
    pub sparse: Option<bool>,
    pub immutable: Option<Immutable>,
    /// Anyone may pull, without a login.
    pub public: Option<bool>,
}

impl Settings {
    pub fn is_empty(&self) -> bool {
        *self == Settings::default()
    }

    pub fn set(&mut self, key: Key, value: &str) -> Result<(), Invalid> {
        match key {
            Key::Ack => self.ack = Some(regions(key, value.parse().ok())?),
            Key::Copies => self.copies = Some(regions(key, value.parse().ok())?),
            Key::Sparse => {
                self.sparse = match value {
                    "allow" => Some(true),
                    "refuse" => Some(false),
                    _ => return Err(Invalid("sparse takes refuse or allow".to_owned())),
                }
            }
            Key::Immutable => self.immutable = Some(value.parse()?),
            Key::Visibility => {
                self.public = match value {
                    "public" => Some(true),
                    "private" => Some(false),
                    _ => return Err(Invalid("visibility takes private or public".to_owned())),
                }
            }
        }
        Ok(())
    }

    pub fn unset(&mut self, key: Key) {
        match key {
            Key::Ack => self.ack = None,
            Key::Copies => self.copies = None,
            Key::Sparse => self.sparse = None,
            Key::Immutable => self.immutable = None,
            Key::Visibility => self.public = None,
        }
    }

    /// As it was typed.
    pub fn get(&self, key: Key) -> Option<String> {
        match key {
            Key::Ack => self.ack.map(|n| n.to_string()),
            Key::Copies => self.copies.map(|n| n.to_string()),
            Key::Sparse => self.sparse.map(|sparse| sparse_word(sparse).to_owned()),
            Key::Immutable => self.immutable.as_ref().map(|i| i.as_str().to_owned()),
            Key::Visibility => self.public.map(|public| visibility_word(public).to_owned()),
        }
    }

    /// What `changes` sets takes the place of what was set.
    pub fn change(&mut self, changes: Settings) {
        self.ack = changes.ack.or(self.ack);
        self.copies = changes.copies.or(self.copies);
        self.sparse = changes.sparse.or(self.sparse);
        self.immutable = changes.immutable.or(self.immutable.take());
        self.public = changes.public.or(self.public);
    }
}

impl From<&Settings> for pb::PolicyRecord {
    fn from(settings: &Settings) -> pb::PolicyRecord {
        pb::PolicyRecord {
            ack: settings.ack,
            copies: settings.copies,
            sparse: settings.sparse,
            immutable: settings.get(Key::Immutable),
            public: settings.public,
        }
    }
}

/// As strict as what an operator typed: apply trusts no proposer.
impl TryFrom<&pb::PolicyRecord> for Settings {
    type Error = Invalid;

    fn try_from(record: &pb::PolicyRecord) -> Result<Settings, Invalid> {
        let number = |key, number: Option<u32>| number.map(|n| regions(key, Some(n))).transpose();
        Ok(Settings {
            ack: number(Key::Ack, record.ack)?,
            copies: number(Key::Copies, record.copies)?,
            sparse: record.sparse,
            immutable: record.immutable.as_deref().map(str::parse).transpose()?,
            public: record.public,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn set(pairs: &[(Key, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in pairs {
            settings.set(*key, value).unwrap();
        }
        settings
    }

    #[test]
    fn what_a_key_does_not_take_is_answered_with_what_it_takes() {
        let mut settings = Settings::default();
        for (key, bad) in [
            (Key::Ack, "0"),
            (Key::Ack, "8"),
            (Key::Copies, "-1"),
            (Key::Copies, "two"),
            (Key::Sparse, "true"),
            (Key::Immutable, ""),
            (Key::Immutable, "^v"),
            (Key::Visibility, "true"),
        ] {
            let told = settings.set(key, bad).unwrap_err().to_string();
            assert!(told.starts_with(key.as_str()), "{told}");
        }
        assert!(settings.is_empty(), "a refusal changes nothing");
        let told = "imutable".parse::<Key>().unwrap_err().to_string();
        assert!(told.contains("did you mean immutable?"), "{told}");
        let told = "retention".parse::<Key>().unwrap_err().to_string();
        assert!(
            told.contains("ack, copies, sparse, immutable, visibility"),
            "{told}"
        );
        for bad in ["", "/", "team/", "Team", "team*", "**", "a//b"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_survive_being_stored() {
        let settings = set(&[
            (Key::Ack, "2"),
            (Key::Copies, "7"),
            (Key::Sparse, "refuse"),
            (Key::Immutable, "v*"),
            (Key::Visibility, "public"),
        ]);
        let record = pb::PolicyRecord::from(&settings);
        assert_eq!(Settings::try_from(&record), Ok(settings));
        let bad = pb::PolicyRecord {
            ack: Some(8),
            ..Default::default()
        };
        assert!(Settings::try_from(&bad).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(key in any::<String>(), value in any::<String>()) {
            let _ = key.parse::<Key>();
            let _ = key.parse::<Prefix>();
            for key in Key::ALL {
                let mut settings = Settings::default();
                if settings.set(key, &value).is_ok() {
                    let shown = settings.get(key).unwrap();
                    let mut again = Settings::default();
                    again.set(key, &shown).unwrap();
                    assert_eq!(again, settings);
                }
            }
        }
    }
}
