//! Real processes, real sockets, real clients: what the cluster tests stand on.

pub mod client;
pub mod cluster;
pub mod daemons;
pub mod dev;
pub mod faults;
pub mod images;
pub mod layouts;
pub mod proxy;
pub mod tools;
pub mod user;
pub mod wait;

/// How often a counted check runs: the small figure in CI, the large one under `just long NAME`,
/// which sets `ROADSTEAD_ROUNDS`.
pub fn rounds(in_ci: usize) -> usize {
    std::env::var("ROADSTEAD_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(in_ci)
}

/// The seed of this run's random choices, printed so that a failing run can be had again with
/// `ROADSTEAD_SEED`.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("ROADSTEAD_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    println!("{test}: ROADSTEAD_SEED={seed}");
    seed
}
