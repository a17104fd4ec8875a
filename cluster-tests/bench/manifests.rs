//! Manifests: read by tag, and written by many at once.

use crate::harness::client::Image;
use crate::others::{Other, wrk};
use crate::wire::Wire;
use crate::{Bed, Row, in_turns, registry};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const REPOSITORY: &str = "bench/manifests";
const WRITERS: u64 = 16;

pub fn read(bed: &Bed) -> Vec<Row> {
    let (cluster, nginx, other) = (bed.cluster(1), Other::nginx(), Other::docker_registry());
    let image = Image::small("read");
    std::fs::write(nginx.dir.path().join("www/manifest"), &image.manifest).expect("write");
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let ways = [
        (registry(&cluster, 0), path.as_str()),
        (nginx.address, "/manifest"),
        (other.address, path.as_str()),
    ];
    for (address, _) in [ways[0], ways[2]] {
        Wire::new(address).push(REPOSITORY, "v1", &image);
    }
    let [own, nginx, other] = in_turns(3, |_, which| wrk(ways[which].0, ways[which].1));
    vec![Row {
        what: "manifest by tag, 32 connections",
        roadstead: format!("{own:.0}/s"),
        beside: format!("nginx {nginx:.0}/s, docker-registry {other:.0}/s"),
        must: format!("0.5 x nginx; is {:.2}", own / nginx),
        holds: Some(own >= 0.5 * nginx),
    }]
}

/// Writes until `until` says so; manifests written, and how long that took.
pub fn write_many(address: SocketAddr, image: &Image, until: impl Fn(u64) -> bool + Sync) -> f64 {
    let (next, began) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut wire = Wire::new(address);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if until(number) {
                        return;
                    }
                    let tag = format!("v{number}");
                    let manifest = image.annotated("number", &number.to_string());
                    wire.put_manifest(REPOSITORY, &tag, &manifest);
                }
            });
        }
    });
    (next.into_inner() - WRITERS) as f64 / began.elapsed().as_secs_f64()
}

/// Writes for five seconds; how many a second.
fn written(address: SocketAddr, salt: &str) -> f64 {
    let image = Image::small(salt);
    Wire::new(address).push(REPOSITORY, "v", &image);
    let end = Instant::now() + Duration::from_secs(5);
    write_many(address, &image, |_| Instant::now() >= end)
}

pub fn write(bed: &Bed) -> Vec<Row> {
    let other = Other::docker_registry();
    let (one, three) = (bed.cluster(1), bed.cluster(3));
    let leader = bed.run(three.leader());
    let ways = [
        registry(&one, 0),
        registry(&three, leader),
        registry(&three, (leader + 1) % 3),
        other.address,
    ];
    let [one, leader, follower, other] = in_turns(3, |round, which| {
        written(ways[which], &format!("round {round}"))
    });
    let row = |what, own: f64, times: f64| Row {
        what,
        roadstead: format!("{own:.0}/s"),
        beside: format!("docker-registry {other:.0}/s"),
        must: format!("{times} x docker-registry; is {:.1}", own / other),
        holds: Some(own >= times * other),
    };
    vec![
        row("manifest PUT, 16 clients, one node", one, 8.0),
        row("the same, three nodes, at the leader", leader, 3.0),
        row("the same, three nodes, at a follower", follower, 3.0),
    ]
}
