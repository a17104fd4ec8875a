//! Guessing is slowed: whoever was wrong often from one place waits before the next check. Nobody is
//! locked out: another place, or a password that was right a moment ago, does not wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

/// Free tries: of one account from one place, and of all from one place.
const FREE_OF_ACCOUNT: u32 = 3;
const FREE_OF_PLACE: u32 = 20;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Without a failure for so long all is forgotten.
const FORGET: Duration = Duration::from_secs(15 * 60);
const MOST_PLACES: usize = 20_000;
/// Logins that wait or are checked at once.
const MOST_WAITING: usize = 256;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    network: Option<IpAddr>,
    /// None: any from there.
    account: Option<String>,
}

struct Failures {
    count: u32,
    last: Instant,
}

pub struct Throttle {
    failures: Mutex<HashMap<Place, Failures>>,
    waiting: Semaphore,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle {
            failures: Mutex::default(),
            waiting: Semaphore::new(MOST_WAITING),
        }
    }
}

fn places(account: &str, client: Option<IpAddr>) -> [(Place, u32); 2] {
    let network = client.map(|client| match client.to_canonical() {
        // What one customer gets.
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    });
    let account = account.chars().take(128).collect();
    let of_account = Place {
        network,
        account: Some(account),
    };
    [
        (of_account, FREE_OF_ACCOUNT),
        (
            Place {
                network,
                account: None,
            },
            FREE_OF_PLACE,
        ),
    ]
}

fn wait_after(count: u32, free: u32) -> Duration {
    match count.checked_sub(free) {
        None => Duration::ZERO,
        Some(over) => (FIRST_WAIT * 2u32.saturating_pow(over.min(10))).min(LONGEST_WAIT),
    }
}

impl Throttle {
    /// Waits as long as this one has to; None: too many wait.
    pub async fn wait(&self, account: &str, client: Option<IpAddr>) -> Option<SemaphorePermit<'_>> {
        let turn = self.waiting.try_acquire().ok()?;
        let wait = self.delay(account, client);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Some(turn)
    }

    fn delay(&self, account: &str, client: Option<IpAddr>) -> Duration {
        let failures = self.failures.lock().expect("no panic while held");
        let of = |(place, free): (Place, u32)| match failures.get(&place) {
            Some(failures) if failures.last.elapsed() < FORGET => wait_after(failures.count, free),
            _ => Duration::ZERO,
        };
        places(account, client)
            .map(of)
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    pub fn failed(&self, account: &str, client: Option<IpAddr>) {
        let mut failures = self.failures.lock().expect("no panic while held");
        if failures.len() >= MOST_PLACES {
            failures.retain(|_, failures| failures.last.elapsed() < FORGET);
        }
        for (place, _) in places(account, client) {
            let is_known = failures.contains_key(&place);
            // When the table is full, places count and accounts do not.
            if failures.len() >= 2 * MOST_PLACES
                || failures.len() >= MOST_PLACES && !is_known && place.account.is_some()
            {
                continue;
            }
            let entry = failures.entry(place).or_insert(Failures {
                count: 0,
                last: Instant::now(),
            });
            if entry.last.elapsed() >= FORGET {
                entry.count = 0;
            }
            entry.count = entry.count.saturating_add(1);
            entry.last = Instant::now();
        }
    }

    /// Who knows the password is no guesser of it; others at the same place may still be.
    pub fn succeeded(&self, account: &str, client: Option<IpAddr>) {
        let [(of_account, _), _] = places(account, client);
        self.failures
            .lock()
            .expect("no panic while held")
            .remove(&of_account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_gets_slower_and_the_victim_elsewhere_does_not_notice() {
        let throttle = Throttle::default();
        let (attacker, victim) = (at("192.0.2.1"), at("192.0.2.2"));
        for _ in 0..FREE_OF_ACCOUNT {
            assert_eq!(throttle.delay("ann", attacker), Duration::ZERO);
            throttle.failed("ann", attacker);
        }
        assert_eq!(throttle.delay("ann", attacker), FIRST_WAIT);
        for _ in 0..10 {
            throttle.failed("ann", attacker);
        }
        assert_eq!(throttle.delay("ann", attacker), LONGEST_WAIT);
        assert_eq!(throttle.delay("ann", victim), Duration::ZERO);
        assert_eq!(throttle.delay("bob", attacker), Duration::ZERO);
        throttle.succeeded("ann", attacker);
        assert_eq!(throttle.delay("ann", attacker), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn going_through_names_is_slowed_too_and_forgotten_in_time() {
        let throttle = Throttle::default();
        for i in 0..=FREE_OF_PLACE {
            throttle.failed(&format!("user{i}"), at("2001:db8::1"));
        }
        assert!(
            throttle.delay("another", at("2001:db8::2")) > Duration::ZERO,
            "the same network"
        );
        assert_eq!(
            throttle.delay("another", at("2001:db8:0:1::1")),
            Duration::ZERO
        );
        tokio::time::advance(FORGET).await;
        assert_eq!(throttle.delay("another", at("2001:db8::2")), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_bounded() {
        let throttle = Throttle::default();
        let mut turns = Vec::new();
        for _ in 0..MOST_WAITING {
            turns.push(throttle.wait("ann", None).await.unwrap());
        }
        assert!(throttle.wait("ann", None).await.is_none());
        turns.pop();
        assert!(throttle.wait("ann", None).await.is_some());
    }
}
