//! A million manifests in one node: what they cost on disk and in memory, how long a start takes,
//! and whether a page of tags grows with them. `ROADSTEAD_ROUNDS` sets another number.

use crate::harness::client::Image;
use crate::harness::rounds;
use crate::manifests::write_many;
use crate::memory::status;
use crate::wire::Wire;
use crate::{Bed, Row, median, registry, seconds};
use std::path::Path;
use std::time::{Duration, Instant};

const REPOSITORY: &str = "bench/manifests";

fn size_of(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).expect("a directory");
    let sizes = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("of a file");
        if metadata.is_dir() {
            size_of(&entry.path())
        } else {
            metadata.len()
        }
    });
    sizes.sum()
}

pub fn million(bed: &Bed) -> Vec<Row> {
    let number = rounds(1_000_000) as u64;
    let mut cluster = bed.cluster(1);
    let address = registry(&cluster, 0);
    let image = Image::small("million");
    Wire::new(address).push(REPOSITORY, "v", &image);
    let rate = write_many(address, &image, |n| n >= number);
    let resident = status(cluster.pid(0), "VmRSS");
    let disk = size_of(&cluster.data_dir(0)) as f64 / number as f64;
    let page = |address| {
        let mut wire = Wire::new(address);
        let target = format!("/v2/{REPOSITORY}/tags/list?n=100&last=v5");
        let pages = (0..100).map(|_| {
            seconds(|| {
                wire.get(&target);
            }) * 1e3
        });
        median(pages.collect())
    };
    let page = page(address);
    let _ = cluster.stop(0);
    let began = Instant::now();
    cluster.run(0);
    bed.run(cluster.wait_ready(Duration::from_secs(600)));
    let restart = began.elapsed();
    let resident_after = status(cluster.pid(0), "VmRSS");
    let row = |what, roadstead| Row {
        what,
        roadstead,
        beside: format!("{number} manifests"),
        must: String::new(),
        holds: None,
    };
    vec![
        row("written, 16 clients", format!("{rate:.0}/s")),
        row("disk per manifest", format!("{disk:.0} B")),
        row(
            "resident memory after them",
            format!("{resident:.0} MiB, restarted {resident_after:.0} MiB"),
        ),
        row("restart until it takes pushes", format!("{restart:.1?}")),
        Row {
            must: "5 ms".to_owned(),
            holds: Some(page <= 5.0),
            ..row("a page of 100 tags", format!("{page:.2} ms"))
        },
    ]
}
