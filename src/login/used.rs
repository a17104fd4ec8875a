//! When accounts were used last: noted in memory, told to the cluster now and then. No request waits
//! for it, and what was not told yet is lost with the process.

use super::Login;
use crate::access::AccountName;
use crate::budget::Budget;
use crate::clock::wall_ms;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

const TELL_EVERY: Duration = Duration::from_secs(60);
/// What is told is older than that by more, or nothing new is said.
const FINE_MS: u64 = 10 * 60 * 1000;
const MOST_AT_ONCE: usize = 500;

#[derive(Default)]
pub struct Uses {
    at_ms: Mutex<HashMap<AccountName, u64>>,
}

impl Uses {
    pub fn note(&self, name: &AccountName, at_ms: u64) {
        let mut uses = self.at_ms.lock().expect("no panic while held");
        match uses.get_mut(name) {
            Some(before) => *before = at_ms,
            None => drop(uses.insert(name.clone(), at_ms)),
        }
    }

    pub fn of(&self, name: &AccountName) -> Option<u64> {
        self.at_ms
            .lock()
            .expect("no panic while held")
            .get(name)
            .copied()
    }
}

impl Login {
    /// As far as this node knows.
    pub fn used_at_ms(&self, name: &AccountName) -> std::io::Result<Option<u64>> {
        let told = self.view().used_at_ms(name)?;
        Ok(told.max(self.inner.used.of(name)))
    }

    pub(super) async fn tell_uses(self) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let uses = match self.news() {
                Ok(uses) => uses,
                Err(error) => {
                    tracing::warn!(%error, "read when accounts were used");
                    continue;
                }
            };
            if uses.is_empty() {
                continue;
            }
            let told = self
                .inner
                .metadata
                .write(Body::Used(pb::Used { uses }), Budget::default());
            if let Err(error) = told.await {
                tracing::debug!(%error, "when accounts were used is told later");
            }
        }
    }

    fn news(&self) -> std::io::Result<Vec<pb::Use>> {
        let day_ago = wall_ms().saturating_sub(24 * 3600 * 1000);
        let noted: Vec<_> = {
            let mut uses = self.inner.used.at_ms.lock().expect("no panic while held");
            uses.retain(|_, at| *at > day_ago);
            uses.iter().map(|(name, at)| (name.clone(), *at)).collect()
        };
        let mut news = Vec::new();
        for (name, at_ms) in noted {
            let told = self.view().used_at_ms(&name)?.unwrap_or_default();
            if at_ms > told.saturating_add(FINE_MS) && news.len() < MOST_AT_ONCE {
                news.push(pb::Use {
                    account: name.to_string(),
                    at_ms,
                });
            }
        }
        Ok(news)
    }
}
