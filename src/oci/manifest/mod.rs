//! What a manifest refers to: a view of the pushed bytes, which are kept and served as they came.
//!
//! Two readings of one manifest are refused (CVE-2021-41190): the type in the header, the type in
//! the body and the shape of the body must agree, and a name stands there once. Parsers written in
//! Go take `Layers` for `layers`, and the last of two; so a name that is like one is refused too.

#[cfg(test)]
mod tests;

use super::digest::Digest;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

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

/// What a parser says may repeat all of a long text; its beginning is enough.
fn invalid(what: impl AsRef<str>) -> ManifestInvalid {
    ManifestInvalid(what.as_ref().chars().take(500).collect())
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

/// The fields that are read, by the names that they have in JSON.
const MANIFEST_NAMES: [&str; 8] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
];
const DESCRIPTOR_NAMES: [&str; 4] = ["mediaType", "digest", "size", "urls"];

/// The names of an object, as they are written.
#[derive(Default)]
struct Names<'a>(Vec<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Names<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Names<'a>, D::Error> {
        deserializer.deserialize_map(Names::default())
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Names<'a> {
    type Value = Names<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Names<'a>, A::Error> {
        while let Some((name, _)) = map.next_entry::<Cow<str>, IgnoredAny>()? {
            self.0.push(name);
        }
        Ok(self)
    }
}

/// Go's folding: letters of ASCII in either case, and the two signs that fold to some of them.
fn is_like(name: &str, known: &str) -> bool {
    let folded = name.chars().map(|c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(known.chars().map(|c| c.to_ascii_lowercase()))
}

/// No name of the object is one of the known ones in another spelling.
fn check_names(json: &str, known: &[&str], what: &str) -> Result<(), ManifestInvalid> {
    let Names(names) =
        serde_json::from_str(json).map_err(|error| invalid(format!("{what}: {error}")))?;
    for name in names {
        if let Some(known) = known.iter().find(|known| is_like(&name, known))
            && name != *known
        {
            return Err(invalid(format!(
                "{what}: {name:?} could be read as {known:?}"
            )));
        }
    }
    Ok(())
}

fn one(raw: &RawValue, what: &str) -> Result<Descriptor, ManifestInvalid> {
    check_names(raw.get(), &DESCRIPTOR_NAMES, what)?;
    let wire: WireDescriptor =
        serde_json::from_str(raw.get()).map_err(|error| invalid(format!("{what}: {error}")))?;
    wire.parse(what)
}

fn many(raw: &RawValue, what: &str) -> Result<Vec<Descriptor>, ManifestInvalid> {
    let wire: Option<Vec<&RawValue>> =
        serde_json::from_str(raw.get()).map_err(|error| invalid(format!("{what}: {error}")))?;
    let wire = wire.unwrap_or_default();
    if wire.len() > MAX_DESCRIPTORS {
        return Err(invalid(format!(
            "{what}: {} descriptors, at most {MAX_DESCRIPTORS} are taken",
            wire.len()
        )));
    }
    wire.into_iter().map(|wire| one(wire, what)).collect()
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
        // Where a text is not read, the parser would not mind.
        let text = std::str::from_utf8(bytes)
            .map_err(|error| invalid(format!("not a manifest: {error}")))?;
        let wire: Wire = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not a manifest: {error}")))?;
        check_names(text, &MANIFEST_NAMES, "manifest")?;
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
        // The same bytes would be of either kind: which depends on who pushes them first.
        (Some(header @ (DOCKER_IMAGE | DOCKER_LIST)), None) => Err(invalid(format!(
            "Content-Type is {header:?}, which a manifest must have as its mediaType too"
        ))),
        (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type.to_owned()),
        (None, None) if wire.config.is_some() && wire.layers.is_some() => Ok(OCI_IMAGE.to_owned()),
        (None, None) if wire.manifests.is_some() => Ok(OCI_INDEX.to_owned()),
        (None, None) => Err(invalid("neither an image nor an index")),
    }
}
