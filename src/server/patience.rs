//! How long a client may keep a connection waiting. Only time in which nothing but the client was
//! waited for counts: never what this node itself takes to read, write or ask its peers.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tokio::time::Sleep;

/// Each time that a client has been waited for so long in all, it must have moved `least` bytes
/// meanwhile. A link that is slower than 1 KiB/s is broken: an image would take days over it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub each: Duration,
    pub least: u64,
}

/// Of bodies on their way in. Nothing at all is found out after one to two minutes.
pub const SENDING: Rule = Rule {
    each: Duration::from_secs(60),
    least: 60 << 10,
};

/// Of answers. Twice as long: what a client has read shows here in steps of a whole socket buffer,
/// and a client that copies on to somewhere slow pauses.
pub const TAKING: Rule = Rule {
    each: Duration::from_secs(120),
    least: 60 << 10,
};

pub struct Patience {
    rule: Rule,
    /// Since the rule was last held against what moved.
    waited: Duration,
    moved: u64,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub fn new(rule: Rule) -> Patience {
        Patience {
            rule,
            waited: Duration::ZERO,
            moved: 0,
            since: None,
            timer: None,
        }
    }

    /// The client has sent or taken so much, and is not waited for until `poll_end`.
    pub fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.moved = self.moved.saturating_add(bytes as u64);
    }

    /// The client is waited for. Ready when there is no patience left.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.since.is_none() && self.waited.is_zero() {
            // What came before anybody had to wait buys no time.
            self.moved = 0;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        loop {
            let end = since + self.rule.each.saturating_sub(self.waited);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            // The end only ever moves away: a timer that is early is set again when it has run out.
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() < end {
                timer.as_mut().reset(end);
                continue;
            }
            if self.moved < self.rule.least {
                return Poll::Ready(());
            }
            self.moved = 0;
            self.waited = Duration::ZERO;
            self.since = None;
            return self.poll_end(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const RULE: Rule = Rule {
        each: Duration::from_secs(60),
        least: 60,
    };

    /// Waits so long, then moves so much; whether patience ended before.
    async fn wait(patience: &mut Patience, seconds: u64, bytes: usize) -> bool {
        let waiting = poll_fn(|cx| patience.poll_end(cx));
        let ended = tokio::time::timeout(Duration::from_secs(seconds), waiting).await;
        patience.moved(bytes);
        ended.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_the_rate_is_waited_for_for_ever() {
        let mut patience = Patience::new(RULE);
        for _ in 0..1000 {
            assert!(!wait(&mut patience, 7, 8).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_not_enough() {
        let mut patience = Patience::new(RULE);
        let begun = Instant::now();
        while !wait(&mut patience, 59, 1).await {}
        assert_eq!(begun.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn much_that_came_at_once_buys_one_more_turn_at_most() {
        let mut patience = Patience::new(RULE);
        patience.moved(1 << 30);
        assert!(!wait(&mut patience, 59, 1 << 30).await);
        assert!(!wait(&mut patience, 60, 0).await);
        assert!(wait(&mut patience, 2, 0).await);
        let mut patience = Patience::new(RULE);
        patience.moved(1 << 30);
        assert!(wait(&mut patience, 61, 0).await);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_time_of_waiting_counts() {
        let mut patience = Patience::new(RULE);
        for _ in 0..5 {
            assert!(!wait(&mut patience, 11, 0).await);
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        assert!(wait(&mut patience, 11, 0).await);
    }
}
