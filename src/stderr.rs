//! Lines on their way to stderr, written by a thread of their own: whoever reads them may be slow,
//! or stuck, and a request must not wait for that.
//!
//! What must stay true: nobody who writes a line waits; lines are dropped whole, when too many wait
//! already, and it is told how many they were; who ends the process waits a little for what is left,
//! and has the last word: what other threads say meanwhile would hide why it ended.

use std::io;
use std::io::Write;
use std::mem::take;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::time::Duration;

/// Bytes that wait; as much again may be on its way.
const MOST: usize = 1 << 20;
/// What a line waits for others: on a busy node a thread is woken for many of them, and not for each.
const GATHER: Duration = Duration::from_millis(5);
/// What the end of a process waits for whoever reads its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);
/// The same, where every moment that the process goes on may do harm.
const AT_ONCE: Duration = Duration::from_millis(100);

static STDERR: OnceLock<Lines> = OnceLock::new();

/// Cheap to clone. Each write is one or several whole lines.
#[derive(Clone, Default)]
pub struct Lines {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    is_writing: bool,
    /// Somebody waits until all are out.
    is_urgent: bool,
    is_ending: bool,
}

/// Those of this process. `tell` says, in a line, how many were dropped. A second call gives what
/// the first one gave.
pub fn lines(tell: impl Fn(u64) + Send + 'static) -> io::Result<Lines> {
    if let Some(lines) = STDERR.get() {
        return Ok(lines.clone());
    }
    let lines = Lines::start(io::stderr(), tell)?;
    Ok(STDERR.get_or_init(|| lines).clone())
}

/// Waits until what was written is out, within bounds.
pub fn flush() {
    if let Some(lines) = STDERR.get() {
        lines.flush(LAST_LINES);
    }
}

/// Ends the process, with its last lines written: those of before.
pub fn exit(code: i32) -> ! {
    if let Some(lines) = STDERR.get() {
        lines.end();
        lines.flush(LAST_LINES);
    }
    std::process::exit(code)
}

/// Ends the process as it is, with its last lines written when that takes no time.
pub fn abort() -> ! {
    if let Some(lines) = STDERR.get() {
        lines.end();
        lines.flush(AT_ONCE);
    }
    std::process::abort()
}

impl Lines {
    fn start(
        mut to: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Lines> {
        let lines = Lines::default();
        let writing = lines.clone();
        let thread = std::thread::Builder::new().name("stderr".to_owned());
        thread.spawn(move || {
            loop {
                let (bytes, dropped) = writing.next();
                // There is nowhere left to say that it failed.
                let _ = to.write_all(&bytes).and_then(|()| to.flush());
                if dropped > 0 {
                    tell(dropped);
                }
            }
        })?;
        Ok(lines)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.queue.waiting.lock().expect("no panic while held")
    }

    /// All that waits, once there is any.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut waiting = self.waiting();
        waiting.is_writing = false;
        self.queue.changed.notify_all();
        let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty();
        let woken = self.queue.changed.wait_while(waiting, is_idle);
        let may_wait = |waiting: &mut Waiting| !waiting.is_urgent;
        let waiting = woken.expect("no panic while held");
        let gathered = self
            .queue
            .changed
            .wait_timeout_while(waiting, GATHER, may_wait);
        let mut waiting = gathered.expect("no panic while held").0;
        waiting.is_writing = true;
        waiting.is_urgent = false;
        (take(&mut waiting.bytes), take(&mut waiting.dropped))
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.is_ending {
            return;
        }
        if waiting.bytes.len() + line.len() > MOST {
            waiting.dropped += 1;
            return;
        }
        let is_first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        if is_first {
            self.queue.changed.notify_all();
        }
    }

    /// Takes no more lines.
    fn end(&self) {
        self.waiting().is_ending = true;
    }

    fn flush(&self, within: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.bytes.is_empty();
        let mut waiting = self.waiting();
        waiting.is_urgent = true;
        self.queue.changed.notify_all();
        let waited = self
            .queue
            .changed
            .wait_timeout_while(waiting, within, is_busy);
        drop(waited);
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    /// Takes as many writes as it is allowed to.
    struct Reader {
        may_read: mpsc::Receiver<()>,
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let allowed = self.may_read.recv();
            allowed.map_err(io::Error::other)?;
            self.read.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_is_stuck_and_what_is_lost_is_told() {
        let (allow, may_read) = mpsc::channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let (told, is_told) = mpsc::channel();
        let reader = Reader {
            may_read,
            read: read.clone(),
        };
        let lines = Lines::start(reader, move |dropped| told.send(dropped).unwrap()).unwrap();
        let line = |n: u64| format!("{n:0>1023}\n").into_bytes();
        lines.push(b"the first\n");
        // Its reader is stuck from here on.
        while !lines.waiting().is_writing {
            std::thread::yield_now();
        }
        for n in 0..3000 {
            lines.push(&line(n));
        }
        let began = Instant::now();
        lines.flush(Duration::from_millis(50));
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it waits for ever"
        );
        for _ in 0..2 {
            allow.send(()).unwrap();
        }
        let dropped = is_told.recv().unwrap();
        let text = String::from_utf8(read.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("the first\n") && text.ends_with('\n'));
        assert_eq!(text.lines().count() as u64 + dropped, 3001);
        assert!(dropped > 0 && text.len() <= 2 * MOST);

        lines.push(b"the last\n");
        allow.send(()).unwrap();
        lines.end();
        lines.push(b"after the end\n");
        lines.flush(Duration::from_secs(60));
        assert!(read.lock().unwrap().ends_with(b"the last\n"));
    }
}
