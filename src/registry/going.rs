//! One copy on its way to another region: the bytes of an upload as they are written, the pace at
//! which the receiver takes them, and whether it still takes any.
//!
//! What must stay true: a receiver is stuck only when it has been given bytes and has not asked for
//! more for `STUCK`; the client's own pauses do not count against it.

use crate::blobs::{ByteStream, Growing, Progress};
use crate::oci::Digest;
use crate::proto::state::v1::Receipt;
use crate::topology::RegionName;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use std::io;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A receiver that takes no piece for so long is replaced.
const STUCK: Duration = Duration::from_secs(10);
/// It has been given all; what the network still carries has this long to arrive.
const DRAIN: Duration = Duration::from_secs(30);
/// How far a client may be ahead of a copy, at the rate at which that copy goes.
const LEAD: Duration = Duration::from_secs(10);
/// The same in bytes, while no rate is known, and at least.
const FIRST_LEAD: u64 = 4 << 20;
const LEAST_LEAD: u64 = 1 << 20;
/// An upload that brings nothing for so long does not keep receivers waiting.
const PAUSED: Duration = Duration::from_secs(30);
const PIECE: usize = 256 << 10;
/// A receiver that answers nothing for so long is late.
const LATE: Duration = Duration::from_secs(5);

/// What an upload turned out to be.
#[derive(Clone)]
pub(super) struct Whole {
    pub digest: Digest,
    pub size: u64,
    /// Of the log, as of which its repository may read it.
    pub index: u64,
}

/// How a copy goes.
#[derive(Clone, Default)]
pub(super) struct Going {
    sent: u64,
    /// How many bytes a client may be ahead.
    lead: u64,
    pub to: Option<RegionName>,
    /// Since when the receiver has a piece before it, or has been given all.
    waiting: Option<Waiting>,
    /// The client brought nothing for long: another receiver would wait in vain too.
    pub is_paused: bool,
    pub over_at: Option<Instant>,
    pub receipt: Option<Receipt>,
}

impl Going {
    pub fn begin(to: Option<RegionName>) -> Going {
        Going {
            lead: FIRST_LEAD,
            to,
            ..Going::default()
        }
    }

    pub fn is_over(&self) -> bool {
        self.over_at.is_some()
    }

    pub fn end(&mut self, receipt: Option<Receipt>) {
        self.receipt = receipt;
        self.over_at = Some(Instant::now());
    }

    pub fn is_late(&self) -> bool {
        self.waiting
            .is_some_and(|waiting| waiting.since.elapsed() > LATE)
    }

    /// May a client have sent so many bytes?
    pub fn allows(&self, written: u64) -> bool {
        self.is_over() || written <= self.sent.saturating_add(self.lead)
    }
}

#[derive(Clone, Copy)]
struct Waiting {
    since: Instant,
    is_given_all: bool,
}

impl Waiting {
    fn is_stuck_at(self) -> Instant {
        self.since + if self.is_given_all { DRAIN } else { STUCK }
    }
}

pub(super) type Copy = watch::Receiver<Going>;

/// The rate at which a receiver takes bytes, by the time that it takes over each piece.
#[derive(Default)]
struct Pace {
    bytes: u64,
    busy: Duration,
}

impl Pace {
    fn took(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.busy += time;
        // The past counts half each time: what the buffers of a connection swallow fades.
        if self.busy > LEAD / 2 {
            self.bytes /= 2;
            self.busy /= 2;
        }
    }

    fn lead(&self) -> u64 {
        let busy = u64::try_from(self.busy.as_millis()).unwrap_or(u64::MAX);
        if busy < 500 {
            return FIRST_LEAD;
        }
        let milliseconds = u64::try_from(LEAD.as_millis()).unwrap_or(u64::MAX);
        (self.bytes.saturating_mul(milliseconds) / busy).max(LEAST_LEAD)
    }
}

/// Passes `bytes` on, and notes in `going` how the receiver takes them.
pub(super) fn watched(
    bytes: ByteStream,
    going: watch::Sender<Going>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let start = (bytes, Pace::default(), None::<(u64, Instant)>);
    stream::unfold(start, move |(mut bytes, mut pace, last)| {
        let going = going.clone();
        async move {
            if let Some((len, since)) = last {
                pace.took(len, since.elapsed());
            }
            let lead = pace.lead();
            going.send_modify(|going| {
                going.lead = lead;
                going.waiting = None;
                going.sent += last.map_or(0, |(len, _)| len);
            });
            let piece = bytes.next().await;
            let since = Instant::now();
            let is_given_all = piece.is_none();
            let waiting = Waiting {
                since,
                is_given_all,
            };
            going.send_modify(|going| going.waiting = Some(waiting));
            let piece = piece?;
            let len = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            Some((piece, (bytes, pace, Some((len, since)))))
        }
    })
}

/// Returns when the receiver has taken nothing for too long.
pub(super) async fn stuck(mut copy: Copy) {
    loop {
        let at = copy.borrow_and_update().waiting.map(Waiting::is_stuck_at);
        let changed = match at {
            None => copy.changed().await,
            Some(at) => match tokio::time::timeout_at(at, copy.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The bytes of an upload as they are written, to its end.
pub(super) fn follow(
    growing: Growing,
    end: watch::Receiver<Option<Whole>>,
    going: watch::Sender<Going>,
) -> ByteStream {
    let start = (growing.progress(), end, 0u64);
    let bytes = stream::unfold(Some(start), move |at| {
        let (growing, going) = (growing.clone(), going.clone());
        async move {
            let (mut progress, mut end, at) = at?;
            let given_up = || Some((Err(io::Error::other("the upload was given up")), None));
            loop {
                let written = match *progress.borrow_and_update() {
                    Progress::Growing { len } | Progress::Done { len } => len,
                    Progress::Failed => return given_up(),
                };
                if at < written {
                    let most = usize::try_from(written - at).unwrap_or(PIECE).min(PIECE);
                    return match growing.read_at(at, most).await {
                        Ok(piece) if piece.is_empty() => given_up(),
                        Ok(piece) => {
                            let next = at + piece.len() as u64;
                            Some((Ok(piece), Some((progress, end, next))))
                        }
                        Err(error) => Some((Err(error), None)),
                    };
                }
                if matches!(&*end.borrow_and_update(), Some(whole) if whole.size == at) {
                    return None;
                }
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { return given_up() },
                    changed = end.changed() => if changed.is_err() { return given_up() },
                    () = tokio::time::sleep(PAUSED) => {
                        going.send_modify(|going| going.is_paused = true);
                        return Some((Err(io::Error::other("the upload pauses")), None));
                    }
                }
            }
        }
    });
    Box::pin(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_is_what_the_receiver_takes_in_ten_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.lead(), FIRST_LEAD, "nothing known");
        // A connection swallows 8 MB at once, then 1 MB a second goes through.
        pace.took(8_000_000, Duration::from_millis(10));
        for _ in 0..400 {
            pace.took(100_000, Duration::from_millis(100));
        }
        let lead = pace.lead();
        assert!((9_000_000..11_000_000).contains(&lead), "{lead}");
        for _ in 0..400 {
            pace.took(10, Duration::from_millis(100));
        }
        assert_eq!(pace.lead(), LEAST_LEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_pauses_ends_its_copies() {
        use crate::blobs::BlobStore;
        use crate::telemetry::Metrics;
        let dir = tempfile::tempdir().unwrap();
        let node = crate::topology::NodeId(1);
        let store = BlobStore::open(dir.path(), node, Metrics::new()).await;
        let (store, _) = store.unwrap();
        let algorithm = crate::oci::Algorithm::Sha256;
        let mut upload = store.staging().create(algorithm).await.unwrap();
        upload.append(Bytes::from_static(b"abc")).await.unwrap();
        upload.flush().await.unwrap();
        let going = watch::Sender::new(Going::default());
        let end = watch::Sender::new(None);
        let mut bytes = follow(upload.follow(), end.subscribe(), going.clone());
        assert_eq!(bytes.next().await.unwrap().unwrap(), "abc");
        assert!(!going.borrow().is_paused);
        assert!(bytes.next().await.unwrap().is_err());
        assert!(going.borrow().is_paused);
        assert!(bytes.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_takes_nothing_is_stuck_and_one_that_waits_for_the_client_is_not() {
        let going = watch::Sender::new(Going::default());
        let waits = tokio::time::timeout(Duration::from_secs(3600), stuck(going.subscribe()));
        assert!(waits.await.is_err(), "nothing was given to it");
        let mut pieces = Box::pin(watched(
            Box::pin(stream::iter([Ok(Bytes::from_static(b"abc"))])),
            going.clone(),
        ));
        assert_eq!(pieces.next().await.unwrap().unwrap(), "abc");
        let given = Instant::now();
        stuck(going.subscribe()).await;
        assert_eq!(given.elapsed(), STUCK);
        assert!(pieces.next().await.is_none());
        assert_eq!(going.borrow().sent, 3);
        stuck(going.subscribe()).await;
        assert_eq!(given.elapsed(), STUCK + DRAIN);
    }
}
