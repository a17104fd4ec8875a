//! What a short-lived token is asked for and is good for: `repository:acme/app:pull,push`
//! (distribution's token specification, "Docker Registry v2 authentication", scope documentation).

use super::rights::Rights;
use crate::oci::RepositoryName;
use serde::Deserialize;
use serde::Serialize;

/// So many are looked at; what is asked for beyond is not granted, which is no error.
const MOST: usize = 100;

/// One resource and what may be done with it, as it stands in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub actions: Vec<String>,
}

impl Scope {
    /// TYPE:NAME:ACTIONS; the name may hold colons (`host:port/name`).
    pub fn parse(text: &str) -> Option<Scope> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let mut named = Vec::new();
        for action in actions.split(',').filter(|action| !action.is_empty()) {
            if !named.contains(&action) && named.len() < 8 {
                named.push(action);
            }
        }
        Some(Scope {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions: named.into_iter().map(str::to_owned).collect(),
        })
    }

    /// The repository that it is about.
    pub fn repository(&self) -> Option<RepositoryName> {
        (self.kind == "repository").then(|| self.name.parse().ok())?
    }

    pub fn is_catalog(&self) -> bool {
        self.kind == "registry" && self.name == "catalog"
    }

    /// The rights that its actions stand for.
    pub fn rights(&self) -> Rights {
        let of = |action: &String| match action.as_str() {
            "pull" => Rights::PULL,
            "push" => Rights::PUSH,
            "delete" => Rights::DELETE,
            "*" => Rights::PULL | Rights::PUSH | Rights::DELETE,
            _ => Rights::NONE,
        };
        self.actions
            .iter()
            .map(of)
            .fold(Rights::NONE, |all, rights| all | rights)
    }

    /// The same scope with no more than `allowed`; None when nothing is left of it.
    pub fn limited(self, allowed: Rights) -> Option<Scope> {
        let is_allowed = |action: &String| match action.as_str() {
            "pull" => allowed.has(Rights::PULL),
            "push" => allowed.has_any(Rights::PUSH),
            "delete" => allowed.has(Rights::DELETE),
            _ => false,
        };
        let mut actions = self.actions;
        if actions.iter().any(|action| action == "*") {
            actions = ["pull", "push", "delete"].map(str::to_owned).to_vec();
        }
        actions.retain(is_allowed);
        (!actions.is_empty()).then_some(Scope { actions, ..self })
    }
}

/// Each of `texts` may hold several, with spaces between them. What cannot be read is left out.
pub fn parse_all<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Scope> {
    let words = texts.flat_map(str::split_ascii_whitespace);
    words.filter_map(Scope::parse).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn scopes_are_read_from_both_ends() {
        let scope = Scope::parse("repository:host:5000/team/app:pull,push,pull").unwrap();
        assert_eq!(scope.name, "host:5000/team/app");
        assert_eq!(scope.actions, ["pull", "push"]);
        assert_eq!(
            scope.repository(),
            None,
            "a colon is in no repository of ours"
        );
        let all = parse_all(
            [
                "repository:a:pull repository:b:push",
                "x",
                "registry:catalog:*",
            ]
            .into_iter(),
        );
        assert_eq!(all.len(), 3);
        assert!(all[2].is_catalog());
    }

    #[test]
    fn less_is_granted_without_an_error_and_never_more() {
        let asked = |text: &str| Scope::parse(text).unwrap();
        let limited = |text: &str, allowed| asked(text).limited(allowed).map(|scope| scope.actions);
        let push = Some(vec!["push".to_owned()]);
        assert_eq!(limited("repository:a:pull,push", Rights::CREATE), push);
        assert_eq!(limited("repository:a:pull", Rights::PUSH), None);
        assert_eq!(
            limited("repository:a:*", Rights::PULL),
            Some(vec!["pull".to_owned()])
        );
        assert_eq!(limited("repository:a:admin,read", Rights::ADMIN), None);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_scope_grows(text in any::<String>(), bits in 0u32..32) {
            for scope in parse_all(std::iter::once(text.as_str())) {
                let allowed = Rights::from_bits(bits);
                if let Some(limited) = scope.limited(allowed) {
                    let widened = match allowed.has_any(Rights::PUSH) {
                        true => allowed | Rights::PUSH,
                        false => allowed,
                    };
                    assert!(widened.has(limited.rights()));
                }
            }
        }
    }
}
