//! Speed, side by side: each row measures Roadstead and what it is held against in the same run,
//! in turns, and prints the ratio. No test: nothing here fails because a machine is slow.
//!
//! `just bench` runs all rows, `just bench NAME...` some; `million` runs only by its name.

#[allow(dead_code, reason = "the cluster tests use the rest")]
#[path = "../harness/mod.rs"]
mod harness;

mod blobs;
mod manifests;
mod memory;
mod million;
mod others;
mod wire;

use comfy_table::{Table, presets};
use harness::cluster::Cluster;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One line of the table.
pub struct Row {
    pub what: &'static str,
    pub roadstead: String,
    pub beside: String,
    /// What the row must reach, as written in the design, and whether it does; None for a figure
    /// that is only to be known.
    pub must: String,
    pub holds: Option<bool>,
}

type Bench = fn(&Bed) -> Vec<Row>;

const ROWS: [(&str, Bench); 8] = [
    ("memory", memory::memory),
    ("pull", blobs::pull),
    ("push", blobs::push),
    ("read", manifests::read),
    ("write", manifests::write),
    ("cold", blobs::cold),
    ("copies", blobs::copies),
    ("million", million::million),
];

/// What every row stands on.
pub struct Bed {
    runtime: tokio::runtime::Runtime,
}

impl Bed {
    /// Regions that reach each other without the proxies of the tests.
    pub fn cluster(&self, regions: usize) -> Cluster {
        let env = [("ROADSTEAD_TEST__REPAIR", "off")];
        self.runtime.block_on(Cluster::start_direct(regions, &env))
    }

    /// Regions whose links can be slowed.
    pub fn linked_cluster(&self, regions: usize) -> Cluster {
        let env = [("ROADSTEAD_TEST__REPAIR", "off")];
        self.runtime.block_on(Cluster::start_with(regions, &env))
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

pub fn registry(cluster: &Cluster, i: usize) -> SocketAddr {
    cluster.registry(i).parse().expect("an address")
}

pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Measures each of `N` ways in each round, beginning with another one each time; the medians.
pub fn in_turns<const N: usize>(
    rounds: usize,
    mut measure: impl FnMut(usize, usize) -> f64,
) -> [f64; N] {
    let mut found = [const { Vec::new() }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let which = (round + turn) % N;
            found[which].push(measure(round, which));
        }
    }
    found.map(median)
}

pub fn seconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

pub fn mb_per_second(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}

fn main() {
    let mut names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    if names.is_empty() {
        let all = ROWS.iter().map(|(name, _)| (*name).to_owned());
        names = all.filter(|name| name != "million").collect();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bed = Bed { runtime };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "roadstead", "beside it", "must be", ""]);
    for name in names {
        let Some((_, bench)) = ROWS.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
            eprintln!("no row is called {name}; there are {}", known.join(", "));
            std::process::exit(2);
        };
        let began = Instant::now();
        eprintln!("{name} ...");
        for row in bench(&bed) {
            let holds = match row.holds {
                None => "",
                Some(true) => "holds",
                Some(false) => "DOES NOT HOLD",
            };
            table.add_row([row.what, &row.roadstead, &row.beside, &row.must, holds]);
        }
        let took = Duration::from_secs(began.elapsed().as_secs());
        eprintln!("{name}: {took:?}");
    }
    println!("{table}");
}
