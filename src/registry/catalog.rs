//! The repositories that somebody may pull from, in order. What it costs follows from what they may
//! see, not from how much is stored.

use super::Error;
use super::Read;
use super::Registry;
use crate::access::Pattern;
use crate::access::Principal;
use crate::access::Rights;
use crate::clock::wall_ms;
use crate::metadata::View;
use crate::oci::RepositoryName;
use std::collections::BTreeSet;
use std::io;

/// Names that are looked at in one go.
const PAGE: usize = 1000;

/// Where names that a pattern is for may lie: one name, or all that begin so.
fn ranges(pattern: &Pattern) -> Vec<(String, bool)> {
    match pattern {
        Pattern::All => vec![(String::new(), true)],
        Pattern::Only(name) => vec![(name.to_string(), false)],
        Pattern::Under(name) => vec![(name.to_string(), false), (format!("{name}/"), true)],
    }
}

impl Registry {
    /// Names after `after`, in byte order.
    pub async fn repositories(
        &self,
        principal: &Principal,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Read<Vec<String>>, Error> {
        let now_ms = wall_ms();
        let look = |view: &View| match principal.is_unbound() {
            true => view.repositories(after, limit),
            false => seen(view, principal, after.unwrap_or_default(), limit, now_ms),
        };
        Ok(self.inner.metadata.read(look).await?)
    }
}

fn seen(
    view: &View,
    principal: &Principal,
    after: &str,
    limit: usize,
    now_ms: u64,
) -> io::Result<Vec<String>> {
    let catalog = principal.scopes.as_ref();
    // A short-lived token for it says so; its own scopes are of single repositories.
    let principal = match catalog {
        Some(scopes) if scopes.iter().any(|scope| scope.is_catalog()) => {
            Principal::new(principal.who.clone())
        }
        _ => principal.clone(),
    };
    let mut found = BTreeSet::new();
    for pattern in view.may_pull_under(&principal, now_ms)? {
        for (start, is_prefix) in ranges(&pattern) {
            let mut taken = 0;
            let mut from = after.to_owned();
            if from < start {
                // The last name that sorts before it is not needed: the start itself may be one.
                let is_there = start.parse::<RepositoryName>().ok();
                if let Some(name) = is_there
                    && !is_prefix
                    && view.has_repository(&name)?
                    && may_see(view, &principal, &name, now_ms)?
                {
                    found.insert(name.to_string());
                }
                from.clone_from(&start);
            }
            while is_prefix && taken < limit {
                let page = view.repositories(Some(&from), PAGE)?;
                let Some(last) = page.last().cloned() else {
                    break;
                };
                for name in page.iter().filter(|name| name.starts_with(&start)) {
                    let Ok(parsed) = name.parse() else { continue };
                    if taken < limit && may_see(view, &principal, &parsed, now_ms)? {
                        found.insert(name.clone());
                        taken += 1;
                    }
                }
                if page.len() < PAGE || !last.starts_with(&start) {
                    break;
                }
                from = last;
            }
        }
    }
    Ok(found.into_iter().take(limit).collect())
}

fn may_see(
    view: &View,
    principal: &Principal,
    name: &RepositoryName,
    now_ms: u64,
) -> io::Result<bool> {
    Ok(view.rights(principal, name, now_ms)?.has(Rights::PULL))
}
