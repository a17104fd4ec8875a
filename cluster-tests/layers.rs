//! Holds `src/` to its structural rules: data flows one way, files stay small and say what they
//! are for; and the crates that the design fixes stay direct dependencies. And the page of the
//! registry API to the tests that it names.
//!
//! Each row of the table names a top-level module and the modules it may use; a module may always
//! use itself. Change the table only together with docs/architecture.md.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer 0: named by anyone, and using only each other.
const GROUND: &[&str] = &[
    "access",
    "audit",
    "budget",
    "certs",
    "clock",
    "durability",
    "oci",
    "policy",
    "proto",
    "spelling",
    "stderr",
    "request_id",
    "tasks",
    "telemetry",
    "topology",
];

const MAY_USE: &[(&str, &[&str])] = &[
    ("blobs", &[]),
    ("peers", &[]),
    ("metadata", &["peers"]),
    ("registry", &["blobs", "metadata", "peers"]),
    ("login", &["metadata"]),
    ("cluster", &["blobs", "metadata", "peers", "registry"]),
    ("http", &["login", "registry"]),
    (
        "api",
        &["cluster", "login", "metadata", "peers", "registry"],
    ),
    (
        "rpc",
        &["blobs", "cluster", "metadata", "peers", "registry"],
    ),
    ("ops", &["registry"]),
    ("server", &[]),
    ("config", &["metadata"]),
    (
        "node",
        &[
            "api", "blobs", "cluster", "config", "http", "login", "metadata", "ops", "peers",
            "registry", "rpc", "server",
        ],
    ),
    ("cli", &["api", "config", "login", "node", "server"]),
];
const MAX_LINES: usize = 500;

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> (PathBuf, Vec<PathBuf>) {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files.sort();
    (src, files)
}

/// The top-level module of a file of `src/`.
fn module(src: &Path, file: &Path) -> String {
    let name = file.strip_prefix(src).unwrap();
    let first = name.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Every `crate::x` that a file names.
fn used(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
    })
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let (src, files) = all_sources();
    let mut broken = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&src).unwrap().display();
        let module = module(&src, &file);
        if text.contains("use crate::{") {
            broken.push(format!(
                "{name} groups crate imports; write one line per module"
            ));
        }
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let allowed: &[&str] = if GROUND.contains(&module.as_str()) {
            &[]
        } else if let Some((_, allowed)) = MAY_USE.iter().find(|(m, _)| *m == module) {
            allowed
        } else {
            broken.push(format!("{name}: module {module} has no row in the table"));
            continue;
        };
        for used in used(&text) {
            let below = GROUND.contains(&used) || allowed.contains(&used) || used == module;
            let is_module = GROUND.contains(&used) || MAY_USE.iter().any(|(m, _)| *m == used);
            if is_module && !below {
                broken.push(format!("{name} uses crate::{used}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn only_the_metadata_folder_names_openraft_and_sled() {
    let (src, files) = all_sources();
    let strangers: Vec<_> = files
        .iter()
        .filter(|file| module(&src, file) != "metadata")
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.contains("openraft::") || text.contains("sled::")
        })
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn files_open_with_what_they_are_for_and_stay_small() {
    let (src, files) = all_sources();
    let mut broken = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&src).unwrap().display().to_string();
        if !text.starts_with("//!") {
            broken.push(format!("{name} does not open with what it is for"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{name} has {lines} lines, over {MAX_LINES}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_message_of_the_protocol_buffers_is_fuzzed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for (proto, target) in [("peer", "peer_messages"), ("state", "records")] {
        let messages = fs::read_to_string(root.join(format!("proto/{proto}.proto"))).unwrap();
        let target = fs::read_to_string(root.join(format!("fuzz/targets/{target}.rs"))).unwrap();
        let words: HashSet<&str> = target.split(|c: char| !c.is_alphanumeric()).collect();
        let names = messages
            .lines()
            .filter_map(|line| line.strip_prefix("message ")?.split([' ', '{']).next());
        missing.extend(
            names
                .filter(|name| !words.contains(name))
                .map(str::to_owned),
        );
    }
    assert!(missing.is_empty(), "no fuzz target decodes {missing:?}");
}

/// The names of the tests in files under `dir`, each with the file that it is in.
fn tests_in(dir: &Path) -> HashSet<(String, String)> {
    let mut files = Vec::new();
    sources(dir, &mut files);
    let of_file = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let file = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let names = text
            .split("\nasync fn ")
            .skip(1)
            .map(|rest| rest.split('(').next().unwrap().to_owned());
        names.map(|name| (file.clone(), name)).collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

#[test]
fn the_page_of_the_registry_api_names_its_tests_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/registry-api.md")).unwrap();
    let is_row = |name: &str| {
        ["end_", "ext_", "code_"]
            .iter()
            .any(|p| name.starts_with(p))
    };
    let all = tests_in(&root.join("cluster-tests"));
    let of_api = tests_in(&root.join("cluster-tests/api"));
    let names = of_api.iter().map(|(_, name)| name.as_str());
    let rows: HashSet<&str> = names.filter(|name| is_row(name)).collect();
    let mut named = HashSet::new();
    let mut broken = Vec::new();
    let words = page.split('`').skip(1).step_by(2);
    for word in words.filter(|word| !word.contains(char::is_whitespace)) {
        match word.split_once("::") {
            None if is_row(word) => drop(named.insert(word)),
            Some((file, name)) if !all.contains(&(file.to_owned(), name.to_owned())) => {
                broken.push(format!("no test {word}"));
            }
            _ => {}
        }
    }
    let missing = named.difference(&rows);
    broken.extend(missing.map(|name| format!("no test {name}")));
    let untold = rows.difference(&named);
    broken.extend(untold.map(|name| format!("no row names {name}")));
    assert!(
        broken.is_empty(),
        "docs/registry-api.md: {}",
        broken.join("\n")
    );
    assert!(rows.len() >= 40, "only {rows:?}");
}

#[test]
fn the_crates_that_the_design_fixes_are_direct_dependencies() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    for name in [
        "tokio",
        "tonic",
        "prost",
        "openraft",
        "sled",
        "reqwest",
        "sha2",
        "serde",
        "tracing",
        "clap",
        "aws-lc-rs",
    ] {
        assert!(
            dependencies.contains_key(name),
            "{name} is not a direct dependency"
        );
    }
    assert!(
        manifest["build-dependencies"]
            .as_table()
            .unwrap()
            .contains_key("protox")
    );
    let version = |name: &str| match &dependencies[name] {
        toml::Value::String(version) => version.clone(),
        table => table["version"].as_str().unwrap().to_owned(),
    };
    assert_eq!(version("openraft"), "=0.10.0-alpha.37");
    assert_eq!(version("sled"), "=0.34.7");
}
