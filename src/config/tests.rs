//! Mistakes in a configuration are found all at once, each with its line and the nearest key.

use super::*;

fn file(content: &str) -> (Draft, Vec<String>) {
    let mut draft = Draft::default();
    let problems = draft.add_file(Path::new("node.toml"), content);
    (draft, problems.iter().map(Problem::to_string).collect())
}

#[test]
fn every_mistake_in_a_file_is_told_with_its_line_and_the_nearest_key() {
    let (_, problems) = file(
        "[node]\nregoin = \"r1\"\ndata_dir = 5\n\n[registy]\nlisten = \":5000\"\n[raft]\nprofile = \"lunar\"\n",
    );
    assert_eq!(
        problems,
        [
            "node.toml:2: unknown key node.regoin; did you mean region?",
            "node.toml:3: node.data_dir takes text in quotes, not a number",
            "node.toml:5: unknown section [registy]; did you mean [registry]?",
            "node.toml:8: raft.profile takes local, continental or global, not \"lunar\"",
        ]
    );
}

#[test]
fn broken_toml_is_told_with_its_line() {
    let (_, problems) = file("[node]\nregion = \n");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("node.toml:2: "), "{problems:?}");
}

#[test]
fn the_environment_overrides_the_file() {
    let (mut draft, problems) = file("[node]\nregion = \"r1\"\n[cluster]\njoin = [\"a:1\"]\n");
    assert!(problems.is_empty(), "{problems:?}");
    let variables = [
        ("ROADSTEAD_NODE__REGION", "r2"),
        ("ROADSTEAD_CLUSTER__JOIN", "b:2,c:3"),
        ("ROADSTEAD_NODE__ROLL", "voter"),
        ("ROADSTEAD_TEST__TICK", "1"),
        ("ROADSTEAD_SERVER", "http://127.0.0.1:5000"),
    ];
    let problems = draft.add_environment(
        variables
            .map(|(k, v)| (OsString::from(k), OsString::from(v)))
            .into_iter(),
    );
    assert_eq!(draft.region.unwrap().as_str(), "r2");
    assert_eq!(draft.join.unwrap(), ["b:2", "c:3"]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place, "ROADSTEAD_NODE__ROLL");
    assert!(
        problems[0].message.contains("did you mean role?"),
        "{}",
        problems[0]
    );
}

#[test]
fn an_empty_data_directory_needs_bootstrap_or_join() {
    let dir = tempfile::tempdir().unwrap();
    let draft = |bootstrap, join: &[&str]| Draft {
        data_dir: Some(dir.path().to_owned()),
        region: Some("r1".parse().unwrap()),
        bootstrap,
        join: Some(join.iter().map(|j| (*j).to_owned()).collect()),
        ..Draft::default()
    };
    let refused = draft(None, &[]).check("node.toml").unwrap_err();
    assert!(
        refused[0]
            .message
            .contains("neither cluster.bootstrap nor cluster.join"),
        "{}",
        refused[0]
    );
    assert!(draft(Some(true), &["a:1"]).check("node.toml").is_err());
    assert_eq!(
        draft(Some(true), &[]).check("node.toml").unwrap().entrance,
        Entrance::Bootstrap
    );

    std::fs::create_dir(dir.path().join("meta")).unwrap();
    std::fs::write(dir.path().join("meta/db"), "").unwrap();
    assert_eq!(
        draft(None, &[]).check("node.toml").unwrap().entrance,
        Entrance::Inside
    );
}

fn whole(change: impl FnOnce(&mut Draft)) -> Result<Config, Vec<Problem>> {
    let mut draft = Draft {
        data_dir: Some(PathBuf::from("/nowhere")),
        region: Some("r1".parse().unwrap()),
        join: Some(vec!["192.0.2.1:5010".to_owned()]),
        ..Draft::default()
    };
    change(&mut draft);
    draft.check("-")
}

#[test]
fn nodes_that_other_machines_reach_need_certificates_or_a_way_to_get_them() {
    let open = |draft: &mut Draft| draft.peer_listen = Some("192.0.2.2:5010".parse().unwrap());
    let told = limits(&whole(open).unwrap());
    assert_eq!(told.len(), 1);
    assert!(
        told[0].contains("192.0.2.2:5010") && told[0].contains("--join-token"),
        "{told:?}"
    );
    let advertised = whole(|draft| draft.peer_advertise = Some("r1.example:5010".to_owned()));
    assert_eq!(limits(&advertised.unwrap()).len(), 1);
    let local = whole(|draft| draft.peer_advertise = Some("localhost:5010".to_owned()));
    assert!(limits(&local.unwrap()).is_empty());
    let registry = whole(|draft| draft.registry_listen = Some("0.0.0.0:5000".parse().unwrap()));
    assert!(limits(&registry.unwrap()).is_empty());
    let with_token = whole(|draft| {
        open(draft);
        draft.join_token = Some(JoinTokenSource::Word("rsj_x".to_owned()));
    });
    let with_token = with_token.unwrap();
    assert!(limits(&with_token).is_empty());
    assert!(!format!("{with_token:?}").contains("rsj_x"));
    let first = whole(|draft| {
        open(draft);
        (draft.bootstrap, draft.join) = (Some(true), None);
    });
    assert!(limits(&first.unwrap()).is_empty());
}

#[test]
fn certificate_and_key_go_together() {
    let told = whole(|draft| draft.registry_cert = Some("c".into())).unwrap_err();
    assert!(told[0].message.contains("registry.cert and registry.key"));
    let told = whole(|draft| draft.peer_ca = Some("c".into())).unwrap_err();
    assert!(told[0].message.contains("peer.ca, peer.cert and peer.key"));
}

#[test]
fn every_key_of_the_design_is_known() {
    let (draft, problems) = file(
        r#"
[node]
data_dir = "/d"
region = "r1"
role = "learner"
[cluster]
bootstrap = false
join = ["r1.example:5010"]
join_token_file = "/t"
[registry]
listen = "127.0.0.1:5000"
external_urls = ["https://registry.example"]
connections_per_address = 100
cert = "/c"
key = "/k"
trusted_proxies = ["10.0.0.0/8"]
[peer]
listen = "127.0.0.1:5010"
advertise = "r1.example:5010"
ca = "/a"
cert = "/c"
key = "/k"
[ops]
listen = ":5020"
[raft]
profile = "global"
[meta]
cache_mib = 32
[log]
level = "debug"
format = "json"
[drills]
enabled = true
max_seconds = 60
"#,
    );
    assert!(problems.is_empty(), "{problems:?}");
    let config = draft.check("-").unwrap_err();
    assert_eq!(config.len(), 1, "{config:?}");
    assert!(
        config[0]
            .message
            .starts_with("both a join token and peer.cert")
    );
}
