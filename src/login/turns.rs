//! One account cannot take all of a node: beyond a number of requests at once its own wait in line.
//! They are held, not refused: most clients give up at a 429 (docs/limits.md).

use super::Denied;
use super::Login;
use crate::access::AccountName;
use crate::access::Principal;
use crate::budget::Budget;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

/// Of one account, until they are answered; the bytes of an answer are not part of it, and uploads
/// are bounded otherwise. One account may be that of a whole company's machines.
const AT_ONCE: usize = 512;

#[derive(Default)]
pub struct Turns {
    of: Mutex<HashMap<AccountName, Arc<Semaphore>>>,
}

/// Held for as long as the request is answered.
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    fn of(&self, name: &AccountName) -> Arc<Semaphore> {
        let mut of = self.of.lock().expect("no panic while held");
        // Those that nobody uses are made anew when they are needed.
        if of.len() > 1000 {
            of.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        let turns = of.entry(name.clone());
        turns
            .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)))
            .clone()
    }

    async fn take(&self, name: &AccountName, budget: Budget) -> Option<Turn> {
        let taken = tokio::time::timeout_at(budget.deadline(), self.of(name).acquire_owned()).await;
        let permit = taken.ok()?.ok()?;
        Some(Turn {
            _permit: Some(permit),
        })
    }
}

impl Login {
    /// Waits until this account has few enough requests under way.
    pub async fn turn(&self, principal: &Principal) -> Result<Turn, Denied> {
        let Some(name) = principal.account() else {
            return Ok(Turn { _permit: None });
        };
        let turn = self.inner.turns.take(name, Budget::default()).await;
        turn.ok_or(Denied::NotYet(
            "this account has too many requests under way",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn one_account_waits_for_its_own_and_the_others_do_not() {
        let turns = Turns::default();
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let second = || Budget::new(Duration::from_secs(1));
        let mut taken = Vec::new();
        for _ in 0..AT_ONCE {
            taken.push(turns.take(&ann, second()).await.unwrap());
        }
        assert!(turns.take(&ann, second()).await.is_none());
        assert!(turns.take(&bob, second()).await.is_some());
        taken.pop();
        assert!(turns.take(&ann, second()).await.is_some());
    }
}
