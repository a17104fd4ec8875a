//! Waiting for a condition, with a deadline: never for a while.

use std::time::Duration;
use tokio::time::Instant;

/// Polls `condition` until it is `Some`, or panics with what was waited for.
pub async fn eventually<T, F>(what: &str, within: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + within;
    let mut tick = tokio::time::interval(Duration::from_millis(30));
    loop {
        tick.tick().await;
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {within:?} in vain until {what}"
        );
    }
}
