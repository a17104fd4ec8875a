//! Manifests that have one reading, and those that have two or none.

use super::*;
use proptest::prelude::{any, proptest};
use serde_json::{Value, json};

fn descriptor(c: char, size: i64) -> Value {
    json!({"mediaType": "application/x", "digest": format!("sha256:{}", c.to_string().repeat(64)), "size": size})
}

fn parse(content_type: Option<&str>, value: &Value) -> Result<Manifest, ManifestInvalid> {
    Manifest::parse(content_type, value.to_string().as_bytes())
}

#[test]
fn an_image_names_config_and_layers_each_once_and_no_foreign_ones() {
    let mut foreign = descriptor('f', 9);
    foreign["urls"] = json!(["http://elsewhere"]);
    let image = json!({"schemaVersion": 2, "config": descriptor('a', 1),
        "layers": [descriptor('b', 2), descriptor('b', 2), foreign], "unknown": {"kept": true}, "annotations": null});
    let manifest = parse(Some(OCI_IMAGE), &image).unwrap();
    assert_eq!(manifest.blobs.len(), 2);
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
    assert_eq!(parse(None, &image).unwrap().media_type, OCI_IMAGE);
    assert_eq!(
        parse(
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            &image
        )
        .unwrap()
        .media_type,
        OCI_IMAGE
    );
}

#[test]
fn only_layers_that_are_not_distributed_may_be_absent() {
    let layer = |c, media_type: &str| {
        let mut layer = descriptor(c, 1);
        layer["mediaType"] = media_type.into();
        layer
    };
    let image = json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": [
        layer('b', "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"),
        layer('c', "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        layer('d', "application/vnd.acme.foreign.model"),
    ]});
    let blobs = parse(None, &image).unwrap().blobs;
    let first_digits: String = blobs
        .iter()
        .filter_map(|b| b.digest.hex().chars().next())
        .collect();
    assert_eq!(first_digits, "ad");
}

#[test]
fn an_empty_list_may_be_null_but_not_missing() {
    let image =
        json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": null, "subject": null});
    assert_eq!(parse(None, &image).unwrap().blobs.len(), 1);
    assert!(
        parse(None, &json!({"manifests": null}))
            .unwrap()
            .children
            .is_empty()
    );
    let both = json!({"config": descriptor('a', 1), "layers": [], "manifests": null});
    assert!(!parse(None, &both).unwrap().is_index);
    assert!(parse(Some(OCI_IMAGE), &json!({"config": descriptor('a', 1)})).is_err());
    assert!(parse(Some(OCI_INDEX), &json!({"schemaVersion": 2})).is_err());
}

#[test]
fn docker_types_are_taken_and_others_are_named_in_the_refusal() {
    let image = json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": []});
    let list = json!({"schemaVersion": 2, "manifests": []});
    for (mut manifest, kind, is_index) in [
        (image.clone(), DOCKER_IMAGE, false),
        (list, DOCKER_LIST, true),
    ] {
        assert!(parse(None, &manifest).unwrap().media_type != kind);
        assert!(parse(Some(kind), &manifest).is_err(), "the body says less");
        manifest["mediaType"] = kind.into();
        for content_type in [Some(kind), None] {
            let taken = parse(content_type, &manifest).unwrap();
            assert_eq!(
                (taken.media_type.as_str(), taken.is_index),
                (kind, is_index)
            );
        }
    }
    let refusal = |content_type| parse(Some(content_type), &image).unwrap_err().0;
    assert_eq!(
        refusal("application/vnd.docker.distribution.manifest.v1+prettyjws"),
        SCHEMA_1
    );
    let artifact = "application/vnd.oci.artifact.manifest.v1+json";
    assert!(refusal(artifact).contains(artifact));
}

#[test]
fn an_index_names_children_and_of_those_the_blobs() {
    let child = |c, media_type: &str| {
        let mut child = descriptor(c, 1);
        child["mediaType"] = media_type.into();
        child
    };
    let mut untold = descriptor('f', 1);
    untold["mediaType"] = Value::Null;
    let index = json!({"schemaVersion": 2, "subject": descriptor('9', 1), "manifests": [
        child('a', OCI_IMAGE),
        child('b', OCI_INDEX),
        child('c', DOCKER_LIST),
        child('d', "application/vnd.oci.artifact.manifest.v1+json"),
        child('e', "application/vnd.oci.image.layer.v1.tar+gzip"),
        child('0', "application/vnd.buildkit.cacheconfig.v0"),
        untold,
    ]});
    let manifest = parse(None, &index).unwrap();
    assert!(manifest.is_index && manifest.subject.is_some());
    assert!(manifest.artifact_type.is_none());
    assert_eq!(manifest.children.len(), 7);
    let first_digits: String = manifest
        .blobs
        .iter()
        .filter_map(|b| b.digest.hex().chars().next())
        .collect();
    assert_eq!(first_digits, "0e");
}

#[test]
fn what_could_be_read_as_two_things_is_refused() {
    let both =
        json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": [], "manifests": []});
    for content_type in [None, Some(OCI_IMAGE), Some(OCI_INDEX)] {
        assert!(parse(content_type, &both).is_err(), "{content_type:?}");
    }
    let image = json!({"mediaType": OCI_IMAGE, "config": descriptor('a', 1), "layers": []});
    assert!(parse(Some(OCI_INDEX), &image).is_err());
    let sizes = json!({"config": descriptor('a', 1), "layers": [descriptor('a', 2)]});
    assert!(parse(None, &sizes).is_err());
    for bad in [
        json!([]),
        json!({}),
        json!({"schemaVersion": 1}),
        json!({"schemaVersion": 3, "manifests": []}),
        json!({"config": descriptor('a', -1), "layers": []}),
        json!({"config": {"digest": format!("sha256:{}", "a".repeat(64)), "size": u64::MAX}, "layers": []}),
        json!({"manifests": vec![descriptor('a', 1); MAX_DESCRIPTORS + 1]}),
    ] {
        assert!(parse(None, &bad).is_err(), "{bad}");
    }
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(40), "]".repeat(40));
    assert!(Manifest::parse(None, deep.as_bytes()).is_err());
}

#[test]
fn a_name_that_another_parser_reads_differently_is_refused() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let config = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
    let image =
        |more: &str| format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]{more}}}"#);
    assert!(Manifest::parse(None, image("").as_bytes()).is_ok());
    assert!(Manifest::parse(None, image(r#","layer":1,"Unknown":2"#).as_bytes()).is_ok());
    for more in [
        r#","layers":[]"#,
        r#","Layers":[]"#,
        r#","LAYERS":null"#,
        r#","layer\u017f":[]"#,
        r#","layerſ":[]"#,
        r#","\u006cayers":[]"#,
        r#","schemaVersion":1"#,
        r#","SchemaVersion":1"#,
        r#","mediaType":"a/b","MediaType":"c/d""#,
        r#","Manifests":[]"#,
        r#","Subject":{}"#,
    ] {
        let error = Manifest::parse(None, image(more).as_bytes());
        assert!(error.is_err(), "{more}");
    }
    for more in [
        r#","Digest":"x""#,
        r#","digest":"x""#,
        r#","SIZE":2"#,
        r#","size":1"#,
        r#","URLs":["x"]"#,
    ] {
        let other = config.replacen('}', &format!("{more}}}"), 1);
        let image = image("").replace(&config, &other);
        let error = Manifest::parse(None, image.as_bytes());
        assert!(error.is_err(), "{more}");
    }
}

#[test]
fn odd_bytes_and_numbers_are_refused_shortly() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let of = |size: &str| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":{size}}},"layers":[]}}"#
        )
    };
    assert!(Manifest::parse(None, of("9223372036854775807").as_bytes()).is_ok());
    let mut bad: Vec<Vec<u8>> = [
        "9223372036854775808",
        "18446744073709551616",
        "1e400",
        "-1",
        "-0",
        "1.0",
        "1e2",
        "01",
        "0x1",
        "null",
        "\"1\"",
        "[1]",
        "NaN",
    ]
    .iter()
    .map(|size| of(size).into_bytes())
    .collect();
    bad.push([b"\xef\xbb\xbf", of("1").as_bytes()].concat());
    bad.push([of("1").as_bytes(), b"\0"].concat());
    bad.push([of("1").as_bytes(), b"{}"].concat());
    bad.push(of("1").replace("2,", "2,\"x\":\"\0\",").into_bytes());
    // In a text that nobody reads.
    let mut broken = of("1").replace("2,", "2,\"x\":\"?\",").into_bytes();
    let at = broken.iter().position(|byte| *byte == b'?').unwrap();
    broken[at] = 0xff;
    bad.push(broken);
    let long = "a".repeat(1 << 20);
    bad.push(of(&format!("\"{long}\"")).into_bytes());
    bad.push(of("1").replace(&digest, &long).into_bytes());
    bad.push(
        of("1")
            .replace("\"layers\"", &format!("\"{long}\":0,\"LAYERS\""))
            .into_bytes(),
    );
    bad.push(format!("{{\"mediaType\":\"{long}\"}}").into_bytes());
    for deep in ["[", "{\"x\":"] {
        bad.push(deep.repeat(1 << 20).into_bytes());
        bad.push(format!("{{\"x\":{}", deep.repeat(1 << 20)).into_bytes());
    }
    for bytes in bad {
        let error = Manifest::parse(None, &bytes).unwrap_err();
        let shown = &bytes[..bytes.len().min(200)];
        assert!(
            error.0.len() < 1000,
            "{}: {}",
            shown.escape_ascii(),
            error.0.len()
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
        let _ = Manifest::parse(None, &bytes);
    }
}
