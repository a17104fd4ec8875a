//! What an operator types for a policy: prefix, key, value, and a repository and a tag that it may
//! mean, a line each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roadstead::oci::{RepositoryName, Tag};
use roadstead::policy::{self, Defaults, Immutable, Key, Prefix, Settings, TagPattern};
use roadstead::proto::state::v1::PolicyRecord;
use std::convert::Infallible;

const DEFAULTS: Defaults = Defaults { ack: 2, copies: 3 };

/// All ways at once: which parts of the text each part of the glob can have taken.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let mut taken = vec![false; text.len() + 1];
    taken[0] = true;
    for wanted in glob {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = match wanted {
                b'*' => taken[at] || (at > 0 && next[at - 1]),
                b'?' => at > 0 && taken[at - 1],
                byte => at > 0 && taken[at - 1] && text[at - 1] == *byte,
            };
        }
        taken = next;
    }
    taken[text.len()]
}

fn check_pattern(pattern: &TagPattern, tag: &Tag) {
    let any = pattern
        .as_str()
        .split(',')
        .any(|glob| matches(glob.as_bytes(), tag.as_str().as_bytes()));
    assert_eq!(pattern.matches(tag), any, "{pattern} {tag}");
}

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(5, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (prefix, key, value, name, tag) = (line(), line(), line(), line(), line());
    let tag = tag.parse::<Tag>();
    if let (Ok(pattern), Ok(tag)) = (value.parse::<TagPattern>(), &tag) {
        check_pattern(&pattern, tag);
    }
    let prefix = match prefix.parse::<Prefix>() {
        Ok(parsed) => {
            assert_eq!(parsed.as_str(), prefix);
            parsed
        }
        Err(_) => Prefix::All,
    };
    let key = match key.parse::<Key>() {
        Ok(parsed) => {
            assert_eq!(parsed.as_str(), key);
            parsed
        }
        Err(error) => {
            assert!(error.to_string().len() < 1024);
            Key::Immutable
        }
    };
    let mut settings = Settings::default();
    if settings.set(key, value).is_err() {
        assert!(settings.is_empty(), "a refusal changes nothing");
        return;
    }
    // A number in its plainest form, anything else as it was typed.
    let shown = settings.get(key).expect("it is set");
    let is_number = matches!(key, Key::Ack | Key::Copies);
    assert!(shown == value || (is_number && shown.parse() == value.parse::<u32>()));
    let mut again = Settings::default();
    assert_eq!(again.set(key, &shown), Ok(()));
    assert_eq!(again, settings);
    assert_eq!(
        Settings::try_from(&PolicyRecord::from(&settings)),
        Ok(settings.clone())
    );
    let mut other = Settings::default();
    other.change(settings.clone());
    assert_eq!(other, settings);
    let mut unset = settings.clone();
    unset.unset(key);
    assert!(unset.is_empty());

    let Ok(name) = name.parse::<RepositoryName>() else {
        return;
    };
    let stored = |of: &str| Ok::<_, Infallible>((of == prefix.as_str()).then(|| settings.clone()));
    let Ok(effective) = policy::resolve(&Prefix::from(&name), DEFAULTS, stored);
    let is_under = match &prefix {
        Prefix::All => true,
        Prefix::Under(of) => name == *of || name.as_str().starts_with(&format!("{of}/")),
    };
    for (found, counts, from) in effective.rows() {
        let is_set = found == key && is_under;
        assert_eq!(
            from,
            is_set.then(|| prefix.as_str()),
            "{name} {prefix} {found}"
        );
        assert!(!is_set || counts == shown);
    }
    if let (Immutable::Matching(pattern), Ok(tag)) = (&effective.immutable.value, &tag) {
        assert_eq!(effective.immutable.value.holds(tag), pattern.matches(tag));
    }
});
