//! The official conformance suite of the distribution spec as the judge, with every profile and
//! everything that a profile can switch on.

use crate::harness::cluster::{Cluster, ROADSTEAD};
use crate::harness::images::{must, run};
use crate::harness::proxy::Proxy;
use crate::harness::tools;
use std::process::Command;

/// Versions of the spec, and the rows of the suite's report that do not say Pass, since that
/// version does not have them.
const PROFILES: &[(&str, &[(&str, &str)])] = &[
    (
        "1.1",
        &[
            ("Blob upload cancel", "Disabled"),
            ("Manifest put with tag params", "Disabled"),
            ("Tag Param", "Disabled"),
            ("Tag Param sha512", "Disabled"),
        ],
    ),
    ("dev", &[]),
];

/// Runs every profile, and fails unless all passed and nothing else was left out.
fn judge(registry: &str) {
    let server = format!("http://{registry}");
    let allow = [
        "policy",
        "set",
        "conformance",
        "sparse=allow",
        "--server",
        &server,
    ];
    must(Command::new(ROADSTEAD).args(allow));
    for (version, left_out) in PROFILES {
        let results = tempfile::tempdir().expect("temp dir");
        let prefix = format!("conformance/v{version}");
        let output = run(tools::go("conformance")
            .env_clear()
            .current_dir(results.path())
            .env("OCI_REGISTRY", registry)
            .env("OCI_TLS", "disabled")
            .env("OCI_REPO1", format!("{prefix}/one"))
            .env("OCI_REPO2", format!("{prefix}/two"))
            .env("OCI_VERSION", version)
            .env("OCI_DATA_SPARSE", "true")
            .env("OCI_RESULTS_DIR", results.path()));
        let said = String::from_utf8_lossy(&output.stdout);
        // The suite exits 0 when it could not begin: only this new file tells that it ran.
        let report = std::fs::read_to_string(results.path().join("results.yaml"));
        let report = report.unwrap_or_else(|e| {
            panic!(
                "{version}: no results: {e}\n{said}{}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let bad = not_passed(&report, left_out);
        let mut totals = said
            .lines()
            .skip_while(|line| !line.starts_with("OCI Conformance Result"));
        let all_pass = totals.next() == Some("OCI Conformance Result: Pass");
        let totals: Vec<String> = totals
            .map_while(|line| line.trim().split_once("..:"))
            .map(|(name, count)| format!("{} {}", name.trim_end_matches('.'), count.trim()))
            .collect();
        println!("conformance {version} at {registry}: {}", totals.join(", "));
        if !bad.is_empty() || !all_pass || !output.status.success() {
            let kept = results.keep();
            panic!(
                "conformance {version} at {registry}: {bad:?}; report: {}\n{}",
                kept.display(),
                failures(&said)
            );
        }
    }
}

/// The rows of the sections `apis` and `data` that do not say what they must. Both must be there.
fn not_passed(report: &str, left_out: &[(&str, &str)]) -> Vec<String> {
    let mut bad = Vec::new();
    for section in ["\napis:\n", "\ndata:\n"] {
        let Some((_, rows)) = report.split_once(section) else {
            bad.push(format!("no section {}", section.trim()));
            continue;
        };
        for row in rows.lines().take_while(|row| row.starts_with(' ')) {
            let (name, result) = row.trim().split_once(": ").unwrap_or((row, "unreadable"));
            let other = left_out.iter().find(|(row, _)| *row == name);
            if result != other.map_or("Pass", |(_, result)| result) {
                bad.push(format!("{name}: {result}"));
            }
        }
    }
    bad
}

/// What the suite printed under each test that failed or was skipped.
fn failures(said: &str) -> String {
    let is_bad = |line: &str| {
        [": FAIL", ": Error", ": Skip"]
            .iter()
            .any(|end| line.ends_with(end))
    };
    let mut told = Vec::new();
    let mut in_bad = false;
    for line in said.lines() {
        if line.starts_with("Configuration:") {
            break;
        }
        if line.trim_start().starts_with("OCI Conformance Test") {
            in_bad = is_bad(line);
        }
        if in_bad {
            told.push(line);
        }
    }
    told.truncate(200);
    told.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_conforms() {
    let cluster = Cluster::start(1).await;
    judge(&cluster.registry(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_three_conforms() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    judge(&cluster.registry((leader + 1) % 3));
    assert_eq!(
        cluster.leader().await,
        leader,
        "the same region led throughout"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_regions_behind_one_address_conform() {
    let cluster = Cluster::start(3).await;
    let regions: Vec<String> = (0..3).map(|i| cluster.registry(i)).collect();
    let proxy = Proxy::spread(&regions).await;
    judge(&proxy.registry());
    let connections = proxy.connections();
    println!("conformance: {connections} connections, each to the next region");
    assert!(
        connections > 1000,
        "each request by a connection of its own"
    );
}
