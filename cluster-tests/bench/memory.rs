//! Resident memory: idle, and while eight clients push and pull.

use crate::blobs::{Big, SIZE};
use crate::harness::client::random_bytes;
use crate::wire::Wire;
use crate::{Bed, Row, registry};

const MIB: f64 = (1 << 20) as f64;
const MOST: f64 = 64.0;

/// A line of /proc/PID/status, in MiB.
pub fn status(pid: u32, line: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let kib = text.lines().find_map(|found| {
        let value = found.strip_prefix(line)?.strip_prefix(':')?;
        value.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    });
    kib.expect("the kernel knows it") * 1024.0 / MIB
}

pub fn memory(bed: &Bed) -> Vec<Row> {
    let cluster = bed.cluster(3);
    let idle: Vec<f64> = (0..3).map(|i| status(cluster.pid(i), "VmRSS")).collect();
    let idle = idle.into_iter().fold(0.0, f64::max);
    drop(cluster);

    let cluster = bed.cluster(1);
    let (pid, address) = (cluster.pid(0), registry(&cluster, 0));
    let before = status(pid, "VmRSS");
    let bytes = random_bytes(5, SIZE);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let bytes = &bytes;
            scope.spawn(move || {
                let blob = Big::new(number, bytes);
                let mut wire = Wire::new(address);
                wire.push_blob("bench/memory", &blob.digest, blob.body());
                wire.get(&format!("/v2/bench/memory/blobs/{}", blob.digest));
            });
        }
    });
    let more = status(pid, "VmHWM") - before;
    vec![
        Row {
            what: "resident memory, idle, the largest of three",
            roadstead: format!("{idle:.0} MiB"),
            beside: String::new(),
            must: "64 MB".to_owned(),
            holds: Some(idle <= MOST),
        },
        Row {
            what: "more while 8 clients push and pull 512 MB each",
            roadstead: format!("{more:.0} MiB"),
            beside: format!("idle {before:.0} MiB"),
            must: "64 MB".to_owned(),
            holds: Some(more <= MOST),
        },
    ]
}
