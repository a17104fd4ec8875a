//! What a manifest refers to: a view of the pushed bytes, which are kept and served as they came.
//!
//! Two readings of one manifest are refused (CVE-2021-41190): the type in the header, the type in
//! the body and the shape of the body must agree.

use super::digest::Digest;
use serde::Deserialize;
use serde::Deserializer;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// With a suffix for compression: layers that are not distributed with the image.
const FOREIGN_LAYERS: [&str; 2] = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const FOREIGN_SUFFIXES: [&str; 4] = ["", "+gzip", "+zstd", ".gzip"];
const SCHEMA_1: &str = "schema 1 is not supported; push the image with a current client";

/// More than any real image; a bound on what one push may cost.
const MAX_DESCRIPTORS: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Sizes are signed 64-bit numbers in every client.
const MAX_SIZE: u64 = i64::MAX as u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Foreign: the bytes are elsewhere, at these addresses.
    pub has_urls: bool,
}

impl Descriptor {
    /// By what it says: also of kinds that are not taken here, which an index may name all the same.
    fn is_manifest(&self) -> bool {
        let media_type = self.media_type.as_str();
        media_type.is_empty() || media_type == OCI_INDEX || media_type.contains(".manifest.")
    }

    /// Its bytes are not distributed with the image.
    fn is_foreign(&self) -> bool {
        self.has_urls
            || FOREIGN_LAYERS
                .iter()
                .any(|layer| match self.media_type.strip_prefix(layer) {
                    Some(suffix) => FOREIGN_SUFFIXES.contains(&suffix),
                    None => false,
                })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// As pushed, without parameters.
    pub media_type: String,
    pub is_index: bool,
    /// Blobs that must be held, each once: config and layers of an image without foreign layers; of
    /// an index, what it does not call a manifest.
    pub blobs: Vec<Descriptor>,
    /// What an index names, each once: manifests, or the blobs of an old BuildKit cache.
    pub children: Vec<Descriptor>,
    pub subject: Option<Descriptor>,
    /// For the referrers listing: `artifactType`, else of an image its config's media type.
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ManifestInvalid(pub String);

fn invalid(what: impl Into<String>) -> ManifestInvalid {
    ManifestInvalid(what.into())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    layers: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    manifests: Option<&'a RawValue>,
    #[serde(borrow)]
    subject: Option<&'a RawValue>,
    annotations: Option<BTreeMap<String, String>>,
}

/// `null` is a value here: clients written in Go send it for an empty list.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
}

impl WireDescriptor {
    fn parse(self, what: &str) -> Result<Descriptor, ManifestInvalid> {
        let digest = self
            .digest
            .parse()
            .map_err(|error| invalid(format!("{what}: {error}")))?;
        if self.size > MAX_SIZE {
            return Err(invalid(format!(
                "{what}: a size of {} is impossible",
                self.size
            )));
        }
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest,
            size: self.size,
            has_urls: self.urls.is_some_and(|urls| !urls.is_empty()),
        })
    }
}

fn one(raw: &RawValue, what: &str) -> Result<Descriptor, ManifestInvalid> {
    let wire: WireDescriptor =
        serde_json::from_str(raw.get()).map_err(|error| invalid(format!("{what}: {error}")))?;
    wire.parse(what)
}

fn many(raw: &RawValue, what: &str) -> Result<Vec<Descriptor>, ManifestInvalid> {
    let wire: Option<Vec<WireDescriptor>> =
        serde_json::from_str(raw.get()).map_err(|error| invalid(format!("{what}: {error}")))?;
    let wire = wire.unwrap_or_default();
    if wire.len() > MAX_DESCRIPTORS {
        return Err(invalid(format!(
            "{what}: {} descriptors, at most {MAX_DESCRIPTORS} are taken",
            wire.len()
        )));
    }
    wire.into_iter().map(|wire| wire.parse(what)).collect()
}

fn is_list(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() != "null")
}

/// How deep brackets nest, outside strings.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Each digest once; two sizes for one digest cannot both be true.
fn distinct(blobs: impl Iterator<Item = Descriptor>) -> Result<Vec<Descriptor>, ManifestInvalid> {
    let mut by_digest: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    for blob in blobs {
        if let Some(other) = by_digest.get(&blob.digest) {
            if other.size != blob.size {
                return Err(invalid(format!("{} is named with two sizes", blob.digest)));
            }
            continue;
        }
        by_digest.insert(blob.digest.clone(), blob);
    }
    Ok(by_digest.into_values().collect())
}

impl Manifest {
    /// `content_type`: as the client sent it. Without one the body's `mediaType` counts, then its
    /// shape (registry API 1.5).
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Manifest, ManifestInvalid> {
        if depth(bytes) > MAX_DEPTH {
            return Err(invalid(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("not a manifest: {error}")))?;
        match wire.schema_version {
            None | Some(2) => {}
            Some(1) => return Err(invalid(SCHEMA_1)),
            Some(other) => return Err(invalid(format!("schemaVersion is {other}, not 2"))),
        }
        let media_type = media_type(content_type, &wire)?;
        let is_index = match media_type.as_str() {
            OCI_IMAGE | DOCKER_IMAGE => false,
            OCI_INDEX | DOCKER_LIST => true,
            other if other.starts_with("application/vnd.docker.distribution.manifest.v1+") => {
                return Err(invalid(SCHEMA_1));
            }
            other => {
                return Err(invalid(format!(
                    "media type {other:?} is not one of an image or an index"
                )));
            }
        };
        let subject = wire.subject.map(|raw| one(raw, "subject")).transpose()?;
        let annotations = wire.annotations.clone().unwrap_or_default();
        let mut manifest = Manifest {
            media_type,
            is_index,
            blobs: Vec::new(),
            children: Vec::new(),
            subject,
            artifact_type: wire.artifact_type.clone().filter(|t| !t.is_empty()),
            annotations,
        };
        if is_index {
            manifest.index(&wire)?
        } else {
            manifest.image(&wire)?
        }
        Ok(manifest)
    }

    fn index(&mut self, wire: &Wire) -> Result<(), ManifestInvalid> {
        if wire.config.is_some() || is_list(wire.layers) {
            return Err(invalid(
                "an index with a config or layers: it could be read as two things",
            ));
        }
        let manifests = wire
            .manifests
            .ok_or_else(|| invalid("an index without manifests"))?;
        self.children = distinct(many(manifests, "manifests")?.into_iter())?;
        let is_blob = |child: &&Descriptor| !child.is_manifest() && !child.is_foreign();
        self.blobs = self.children.iter().filter(is_blob).cloned().collect();
        Ok(())
    }

    fn image(&mut self, wire: &Wire) -> Result<(), ManifestInvalid> {
        if is_list(wire.manifests) {
            return Err(invalid(
                "an image with manifests: it could be read as two things",
            ));
        }
        let config = one(
            wire.config
                .ok_or_else(|| invalid("an image without a config"))?,
            "config",
        )?;
        let layers = many(
            wire.layers
                .ok_or_else(|| invalid("an image without layers"))?,
            "layers",
        )?;
        if self.artifact_type.is_none() && !config.media_type.is_empty() {
            self.artifact_type = Some(config.media_type.clone());
        }
        let named = std::iter::once(config).chain(layers);
        self.blobs = distinct(named.filter(|blob| !blob.is_foreign()))?;
        Ok(())
    }
}

fn media_type(content_type: Option<&str>, wire: &Wire) -> Result<String, ManifestInvalid> {
    let header = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|t| !t.is_empty());
    match (header, wire.media_type.as_deref().filter(|t| !t.is_empty())) {
        (Some(header), Some(body)) if header != body => Err(invalid(format!(
            "Content-Type is {header:?}, mediaType is {body:?}"
        ))),
        (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type.to_owned()),
        (None, None) if wire.config.is_some() && wire.layers.is_some() => Ok(OCI_IMAGE.to_owned()),
        (None, None) if wire.manifests.is_some() => Ok(OCI_INDEX.to_owned()),
        (None, None) => Err(invalid("neither an image nor an index")),
    }
}

#[cfg(test)]
mod tests {
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
        let image = json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": null, "subject": null});
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
        assert!(!parse(Some(DOCKER_IMAGE), &image).unwrap().is_index);
        assert!(
            parse(Some(DOCKER_LIST), &json!({"manifests": []}))
                .unwrap()
                .is_index
        );
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
        let both = json!({"schemaVersion": 2, "config": descriptor('a', 1), "layers": [], "manifests": []});
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

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
            let _ = Manifest::parse(None, &bytes);
        }
    }
}
