//! What counts for a repository: for each key the longest prefix that sets it, and which that is.

use super::Immutable;
use super::Key;
use super::Prefix;
use super::Settings;
use super::sparse_word;
use super::visibility_word;
use crate::proto::state::v1 as pb;

/// A value, and the prefix that set it; None: the cluster's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub value: T,
    pub from: Option<String>,
}

/// What counts for a repository, or for all under a prefix that say nothing themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub ack: Found<u32>,
    pub copies: Found<u32>,
    pub sparse: Found<bool>,
    pub immutable: Found<Immutable>,
    pub public: Found<bool>,
}

impl Effective {
    /// Each key with its value as it is typed, and where that comes from.
    pub fn rows(&self) -> [(Key, String, Option<&str>); 5] {
        let Effective {
            ack,
            copies,
            sparse,
            immutable,
            public,
        } = self;
        let word = sparse_word(sparse.value).to_owned();
        [
            (Key::Ack, ack.value.to_string(), ack.from.as_deref()),
            (
                Key::Copies,
                copies.value.to_string(),
                copies.from.as_deref(),
            ),
            (Key::Sparse, word, sparse.from.as_deref()),
            (
                Key::Immutable,
                immutable.value.as_str().to_owned(),
                immutable.from.as_deref(),
            ),
            (
                Key::Visibility,
                visibility_word(public.value).to_owned(),
                public.from.as_deref(),
            ),
        ]
    }
}

/// The numbers that the cluster was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub ack: u32,
    pub copies: u32,
}

/// Of a state without its cluster record, one region.
impl From<&pb::ClusterRecord> for Defaults {
    fn from(cluster: &pb::ClusterRecord) -> Defaults {
        Defaults {
            ack: cluster.ack.max(1),
            copies: cluster.copies.max(1),
        }
    }
}

impl From<Defaults> for Effective {
    fn from(defaults: Defaults) -> Effective {
        fn by_default<T>(value: T) -> Found<T> {
            Found { value, from: None }
        }
        Effective {
            ack: by_default(defaults.ack),
            copies: by_default(defaults.copies),
            sparse: by_default(false),
            immutable: by_default(Immutable::None),
            public: by_default(false),
        }
    }
}

/// `settings_of` reads what a prefix sets; it is asked once for each prefix that there can be.
pub fn resolve<E>(
    prefix: &Prefix,
    defaults: Defaults,
    mut settings_of: impl FnMut(&str) -> Result<Option<Settings>, E>,
) -> Result<Effective, E> {
    fn take<T>(found: &mut Found<T>, value: Option<T>, from: &str) {
        if let (None, Some(value)) = (&found.from, value) {
            let from = Some(from.to_owned());
            *found = Found { value, from };
        }
    }
    let mut effective = Effective::from(defaults);
    for from in prefix.upwards() {
        if let Some(settings) = settings_of(from)? {
            take(&mut effective.ack, settings.ack, from);
            take(&mut effective.copies, settings.copies, from);
            take(&mut effective.sparse, settings.sparse, from);
            take(&mut effective.immutable, settings.immutable, from);
            take(&mut effective.public, settings.public, from);
        }
    }
    Ok(effective)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    const DEFAULTS: Defaults = Defaults { ack: 2, copies: 3 };

    fn set(pairs: &[(Key, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in pairs {
            settings.set(*key, value).unwrap();
        }
        settings
    }

    fn effective(name: &str, stored: &BTreeMap<&str, Settings>) -> Effective {
        let found = |prefix: &str| Ok::<_, Infallible>(stored.get(prefix).cloned());
        resolve(&name.parse().unwrap(), DEFAULTS, found).unwrap()
    }

    #[test]
    fn for_each_key_the_longest_prefix_that_sets_it_wins() {
        let stored = BTreeMap::from([
            ("*", set(&[(Key::Ack, "3"), (Key::Immutable, "v*")])),
            ("team", set(&[(Key::Ack, "1"), (Key::Sparse, "allow")])),
            ("team/app", set(&[(Key::Sparse, "refuse")])),
        ]);
        let app = effective("team/app/x", &stored);
        assert_eq!((app.ack.value, app.ack.from.as_deref()), (1, Some("team")));
        assert_eq!(app.sparse.from.as_deref(), Some("team/app"));
        assert!(!app.sparse.value);
        assert_eq!(app.immutable.from.as_deref(), Some("*"));
        assert_eq!((app.copies.value, app.copies.from), (3, None));
        assert_eq!(effective("*", &stored).ack.value, 3);
    }

    #[test]
    fn a_prefix_is_whole_path_components() {
        let stored = BTreeMap::from([("team", set(&[(Key::Sparse, "allow")]))]);
        for (name, expected) in [
            ("team", true),
            ("team/app", true),
            ("teams", false),
            ("team-a", false),
            ("a/team", false),
            ("*", false),
        ] {
            assert_eq!(effective(name, &stored).sparse.value, expected, "{name}");
        }
    }
}
