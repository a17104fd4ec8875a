//! Three regions in one thread, over a simulated network, on stores that lose what was not synced:
//! links are cut, machines lose power, and pushes and pulls go on meanwhile. One seed gives one run,
//! to the byte.
//!
//! What is checked: whatever is down, if a majority is up, pushes go on (P5); a tag read that is not
//! marked as stale never misses a push that was acknowledged before it began (P3); no manifest
//! whose push was acknowledged is lost; in the end all states are equal. Blobs are not simulated.
//!
//! mad-turmoil takes over libc's clock and random source, once per process, so each run is a child
//! process of this test. `ROADSTEAD_SEEDS=200` runs more seeds, `ROADSTEAD_SEED=7 cargo test --test
//! simulation -- --nocapture` one; `ROADSTEAD_TRACE=info` (or another filter) shows what it logs.

// A failed test panics; clippy knows that only of functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/traffic.rs"]
mod traffic;
#[path = "simulation/world.rs"]
mod world;

use rand::SeedableRng;
use rand::rngs::StdRng;
use roadstead::metadata::Kv;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::task::JoinSet;
use trace::Trace;
use traffic::Notes;
use traffic::keep_pulling;
use traffic::keep_pushing;
use traffic::tagged;
use world::Failure;
use world::PAUSE;
use world::Power;
use world::REGIONS;
use world::World;
use world::machine;

const ROUNDS: usize = 5;
/// Within this, a majority that can speak to itself takes a push.
const PATIENCE: Duration = Duration::from_secs(60);
const SEED: &str = "ROADSTEAD_SEED";
const SEEDS: &str = "ROADSTEAD_SEEDS";

#[test]
fn pushes_survive_cuts_and_power_loss_and_the_regions_agree() {
    if let Some(seed) = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        println!("{}", simulate(seed));
        return;
    }
    let seeds = std::env::var(SEEDS)
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(5);
    for seed in 1..=seeds {
        run_child(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    if std::env::var(SEED).is_ok() {
        return;
    }
    let (first, again, other) = (run_child(1), run_child(1), run_child(2));
    assert_eq!(first, again, "two runs of seed 1 differ");
    assert_ne!(first, other, "the seed changes nothing");
}

/// What one run printed of itself: its last line, with the hash of its trace.
fn run_child(seed: u64) -> String {
    let test = "pushes_survive_cuts_and_power_loss_and_the_regions_agree";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr),
    );
    assert!(
        child.status.success(),
        "seed {seed} failed, run it with {SEED}={seed}:\n{out}\n{err}"
    );
    let line = out
        .lines()
        .find(|line| line.contains("trace "))
        .map(str::to_owned);
    let line = line.unwrap_or_else(|| panic!("seed {seed} says nothing:\n{out}\n{err}"));
    println!("{line}");
    line
}

/// Breaks one node in one way; `heal` undoes it.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut(&'static str),
    Deaf(&'static str),
    Mute(&'static str),
    PowerLoss(&'static str),
}

impl Fault {
    fn any(node: &'static str) -> Fault {
        match fastrand::u8(..4) {
            0 => Fault::Cut(node),
            1 => Fault::Deaf(node),
            2 => Fault::Mute(node),
            _ => Fault::PowerLoss(node),
        }
    }

    fn node(self) -> &'static str {
        match self {
            Fault::Cut(node) | Fault::Deaf(node) | Fault::Mute(node) | Fault::PowerLoss(node) => {
                node
            }
        }
    }

    fn begin(self, world: &World) {
        let node = self.node();
        for other in REGIONS.into_iter().filter(|other| *other != node) {
            match self {
                Fault::Cut(_) => turmoil::partition(node, other),
                Fault::Deaf(_) => turmoil::partition_oneway(other, node),
                Fault::Mute(_) => turmoil::partition_oneway(node, other),
                Fault::PowerLoss(_) => {}
            }
        }
        if let Fault::PowerLoss(_) = self {
            world.power.lock().unwrap().push(Power::Cut(node));
        }
    }

    fn heal(self, world: &World) {
        let node = self.node();
        for other in REGIONS.into_iter().filter(|other| *other != node) {
            turmoil::repair(node, other);
        }
        if let Fault::PowerLoss(_) = self {
            world.power.lock().unwrap().push(Power::On(node));
        }
    }
}

/// Waits until each of these nodes has had a push acknowledged from now on.
async fn pushes_go_on(notes: &Notes, nodes: &[&'static str], during: &str) {
    let count = |node: &str| {
        let book = notes.lock().unwrap();
        let own = book.tags.iter().filter(|(tag, _)| tag.starts_with(node));
        own.map(|(_, history)| history.acknowledged).sum::<u64>()
    };
    let before: Vec<u64> = nodes.iter().map(|node| count(node)).collect();
    let all_went_on = async {
        while nodes
            .iter()
            .zip(&before)
            .any(|(node, before)| count(node) <= *before)
        {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all_went_on).await;
    assert!(
        in_time.is_ok(),
        "no push through each of {nodes:?} for {PATIENCE:?} during {during}"
    );
}

async fn story(world: Arc<World>, notes: Notes) -> Result<String, Failure> {
    while world.doors.lock().unwrap().len() < REGIONS.len() {
        tokio::time::sleep(PAUSE).await;
    }
    let mut traffic = JoinSet::new();
    for node in REGIONS {
        traffic.spawn(keep_pushing(world.clone(), notes.clone(), node));
        traffic.spawn(keep_pulling(world.clone(), notes.clone(), node));
    }
    let rounds = async {
        pushes_go_on(&notes, &REGIONS, "the first minute").await;
        for round in 0..ROUNDS {
            let leader = world.leader().await;
            let fault = match round {
                0 => Fault::Cut(leader),
                1 => Fault::PowerLoss(leader),
                _ => Fault::any(fastrand::choice(REGIONS).unwrap_or(leader)),
            };
            tracing::info!(?fault, leader, "a fault begins");
            fault.begin(&world);
            let others: Vec<_> = REGIONS
                .into_iter()
                .filter(|node| *node != fault.node())
                .collect();
            pushes_go_on(&notes, &others, &format!("{fault:?} with leader {leader}")).await;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..5000))).await;
            fault.heal(&world);
            pushes_go_on(&notes, &REGIONS, &format!("the time after {fault:?}")).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        // They run for ever: one that ends has found something.
        Some(ended) = traffic.join_next() => ended?,
    }
    traffic.shutdown().await;
    agree(&world, &notes).await
}

/// Waits until all states are equal at one index, and compares them with what was acknowledged.
async fn agree(world: &World, notes: &Notes) -> Result<String, Failure> {
    let settled = async {
        loop {
            let mut states = BTreeSet::new();
            for node in REGIONS {
                states.insert(
                    world
                        .on(node, |metadata| async move {
                            metadata.view().state_hash().expect("memory does not fail")
                        })
                        .await,
                );
            }
            if let (1, Some(Some((index, hash)))) = (states.len(), states.first()) {
                return (*index, *hash);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let (index, hash) = tokio::time::timeout(PATIENCE, settled)
        .await
        .map_err(|_| "the states differ")?;
    let tags: Vec<_> = notes
        .lock()
        .unwrap()
        .tags
        .iter()
        .map(|(tag, history)| (tag.clone(), history.acknowledged, history.attempted))
        .collect();
    for node in REGIONS {
        for (tag, acknowledged, attempted) in tags.clone() {
            let name = tag.clone();
            let read = world
                .on(
                    node,
                    |metadata| async move { tagged(&metadata, &name).await },
                )
                .await;
            let (version, _) = read.flatten().ok_or("a node cannot read")?;
            assert!(
                (acknowledged..=attempted).contains(&version),
                "{tag} is at version {version} on {node}; {acknowledged} was acknowledged, {attempted} tried"
            );
        }
    }
    let book = notes.lock().unwrap();
    assert!(
        book.unmarked > book.marked,
        "most reads are fresh: {} and {}",
        book.unmarked,
        book.marked
    );
    Ok(format!(
        "index {index} state {:02x}{:02x} pushes {} pulls {} and {} marked",
        hash[0], hash[1], book.pushes, book.unmarked, book.marked
    ))
}

fn simulate(seed: u64) -> String {
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    fastrand::seed(seed);
    let trace = Trace::install();

    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("simulation-{}", std::process::id()));
    let world = Arc::new(World {
        scratch: scratch.clone(),
        ..World::default()
    });
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::from_secs(1200))
        .tick_duration(Duration::from_millis(2))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(40))
        .tcp_capacity(8192)
        .rng_seed(seed)
        .enable_random_order()
        .build();
    for name in REGIONS {
        world.disks.lock().unwrap().insert(name, Kv::memory());
        let world = world.clone();
        sim.host(name, move || machine(world.clone(), name));
    }
    let result = Arc::new(Mutex::new(String::new()));
    let (told, telling) = (result.clone(), world.clone());
    sim.client("operator", async move {
        let summary = story(telling, Notes::default()).await?;
        *told.lock().unwrap() = summary;
        Ok(())
    });
    while !sim.step().unwrap() {
        for change in std::mem::take(&mut *world.power.lock().unwrap()) {
            match change {
                Power::Cut(node) => {
                    sim.crash(node);
                    world.doors.lock().unwrap().remove(node);
                    let mut disks = world.disks.lock().unwrap();
                    let left = disks.get(node).and_then(Kv::after_power_cut);
                    disks.insert(node, left.expect("stores in memory can lose power"));
                }
                Power::On(node) => sim.bounce(node),
            }
        }
    }
    let seconds = sim.elapsed().as_secs();
    drop(sim);
    let _ = std::fs::remove_dir_all(scratch);
    let summary = result.lock().unwrap().clone();
    let (lines, hash) = trace.summary();
    format!("seed {seed}: {seconds} s, {summary}; trace {lines} {hash:016x}")
}
