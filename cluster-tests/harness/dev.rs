//! `roadstead dev` as an operator runs it, with its JSON events read line by line.

use super::cluster::ROADSTEAD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

pub struct Dev {
    child: Child,
    events: BufReader<ChildStdout>,
    /// The `ready` event.
    pub ready: Value,
}

/// `n` consecutive ports, `n` more at +10 and +20, that were free a moment ago.
pub fn free_base_port() -> u16 {
    for _ in 0..200 {
        let base = rand::random_range(20_000..30_000u16);
        let all_free = [0, 10, 20]
            .iter()
            .flat_map(|offset| (0..7).map(move |i| base + offset + i))
            .all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
        if all_free {
            return base;
        }
    }
    panic!("no free range of ports");
}

impl Dev {
    pub fn start(dir: &Path, base_port: u16, regions: usize) -> Dev {
        let mut child = Command::new(ROADSTEAD)
            .args(["dev", "-o", "json", "--data-dir"])
            .arg(dir)
            .args(["--base-port", &base_port.to_string()])
            .args(["--regions", &regions.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start roadstead dev");
        let events = BufReader::new(child.stdout.take().expect("piped"));
        let mut dev = Dev {
            child,
            events,
            ready: Value::Null,
        };
        dev.ready = dev.event("ready");
        dev
    }

    /// The next event of this kind.
    pub fn event(&mut self, kind: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.events.read_line(&mut line).expect("read event");
            assert!(read > 0, "dev ended before {kind:?}");
            let event: Value = serde_json::from_str(&line).expect("one JSON document a line");
            if event["event"] == kind {
                return event;
            }
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal own child");
    }

    /// What an interactive Ctrl-C does.
    pub fn interrupt(mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.child.wait().expect("reap own child")
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill own child");
        self.child.wait().expect("reap own child");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = self.child.wait();
    }
}
