//! The headers that every call between nodes carries, as `name: value` lines: who passes the check
//! is of this cluster and lineage, speaks to this node, and is not an older start.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use roadstead::peers::envelope::{Guard, Mismatch, headers, request};
use roadstead::peers::{ClusterIdentity, Identity};
use roadstead::topology::{NodeId, Role};

fn identity(node: u64, boot: u64, cluster: Option<ClusterIdentity>) -> Identity {
    let region = "r1".parse().unwrap();
    Identity::new(
        NodeId(node),
        region,
        Role::Voter,
        boot,
        String::new(),
        cluster,
    )
}

fn said<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn check(sent: &HeaderMap, me: &Identity, is_open: bool) {
    let guard = Guard::default();
    let result = guard.check(sent, me, is_open);
    let node = match result {
        Ok(node) => node,
        Err(mismatch) => return assert!(!mismatch.to_string().is_empty()),
    };
    assert_eq!(
        said(sent, "roadstead-from").to_ascii_lowercase(),
        node.to_string()
    );
    let target = said(sent, "roadstead-target");
    assert!(target == me.node().to_string() || (is_open && target.is_empty()));
    match me.cluster() {
        Some(cluster) => {
            let named = said(sent, "roadstead-cluster");
            assert!(named == cluster.cluster_id || (is_open && named.is_empty()));
            let lineage = said(sent, "roadstead-lineage");
            assert!(lineage == cluster.lineage || (is_open && lineage.is_empty()));
        }
        None => assert!(is_open),
    }
    assert_eq!(
        guard.check(sent, me, is_open),
        Ok(node),
        "the same start may go on"
    );
    let boot: u64 = said(sent, "roadstead-boot").parse().unwrap();
    let Some(later) = boot.checked_add(1) else {
        return;
    };
    let restarted: HeaderMap = headers(&identity(node.0, later, me.cluster()), Some(me.node()))
        .into_iter()
        .collect();
    assert_eq!(guard.check(&restarted, me, is_open), Ok(node));
    let before = guard.check(sent, me, is_open);
    assert_eq!(
        before,
        if is_open {
            Ok(node)
        } else {
            Err(Mismatch::Boot { node, boot })
        }
    );
}

fuzz_target!(|bytes: &[u8]| {
    let mut sent = HeaderMap::new();
    for line in bytes.split(|b| *b == b'\n') {
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.strip_prefix(b": ").unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            sent.append(name, value);
        }
    }
    if let Some(id) = request(&sent) {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let cluster = ClusterIdentity {
        cluster_id: "c".into(),
        lineage: "l".into(),
    };
    for me in [identity(2, 1, Some(cluster)), identity(2, 1, None)] {
        check(&sent, &me, false);
        check(&sent, &me, true);
    }
});
