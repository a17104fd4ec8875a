//! Clients that mean harm, or are broken: what they send has one reading or is refused, and what
//! they hold is bounded, so that everybody else is served.

mod bad_requests;
mod connections;
mod frames;
mod framing;
mod generated;
mod http_2;
pub mod wire;

use crate::harness::cluster::Cluster;

/// Resident memory of region `i`, in MiB.
fn memory(cluster: &Cluster, i: usize) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(i))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

fn over_http_2() -> reqwest::Client {
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge();
    client.build().unwrap()
}
