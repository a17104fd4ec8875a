//! What a simulated run logs, as the measure of whether two runs are the same.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// A filter, which also shows the lines.
const TRACE: &str = "ROADSTEAD_TRACE";
/// Every step of Raft as well would make a run three times as slow.
const FILTER: &str = "info,roadstead=debug,simulation=debug";

/// What the nodes log, as a count and a hash (FNV-1a): equal for equal runs.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<(u64, u64)>>);

impl Default for Trace {
    fn default() -> Self {
        Trace(Arc::new(Mutex::new((0, 0xcbf2_9ce4_8422_2325))))
    }
}

impl Trace {
    /// Collects what the process logs from now on.
    pub fn install() -> Trace {
        let trace = Trace::default();
        let writer = trace.clone();
        let filter = EnvFilter::new(std::env::var(TRACE).unwrap_or_else(|_| FILTER.to_owned()));
        tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_env_filter(filter)
            .with_writer(move || writer.clone())
            .init();
        trace
    }

    /// Lines, and their hash.
    pub fn summary(&self) -> (u64, u64) {
        *self.0.lock().unwrap()
    }
}

impl io::Write for Trace {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut trace = self.0.lock().unwrap();
        trace.0 += 1;
        trace.1 = line.iter().fold(trace.1, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        if std::env::var_os(TRACE).is_some() {
            let now = turmoil::sim_elapsed().unwrap_or_default();
            eprint!(
                "{:>8.3} {}",
                now.as_secs_f64(),
                String::from_utf8_lossy(line)
            );
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
