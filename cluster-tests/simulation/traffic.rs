//! Clients of a simulated run: they push and pull without end, and know what they were told.

use super::world::PAUSE;
use super::world::World;
use roadstead::budget::Budget;
use roadstead::metadata::Metadata;
use roadstead::oci::Algorithm;
use roadstead::oci::Digest;
use roadstead::oci::RepositoryName;
use roadstead::oci::Tag;
use roadstead::proto::state::v1 as pb;
use roadstead::proto::state::v1::command::Body;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

const REPOSITORY: &str = "team/app";

/// Of one tag: the versions pushed to it, in order, each by one push after another.
#[derive(Default)]
pub struct History {
    pub attempted: u64,
    pub acknowledged: u64,
}

#[derive(Default)]
pub struct Book {
    pub tags: BTreeMap<String, History>,
    pub pushes: u64,
    pub unmarked: u64,
    pub marked: u64,
}

pub type Notes = Arc<Mutex<Book>>;

/// A push's bytes are its tag and its version.
fn version_of(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).unwrap();
    text.rsplit_once(' ').unwrap().1.parse().unwrap()
}

fn push(tag: &str, version: u64) -> Body {
    let bytes = format!("{tag} {version}").into_bytes();
    Body::PutManifest(pb::PutManifest {
        repository: REPOSITORY.to_owned(),
        digest: Digest::of(Algorithm::Sha256, &bytes).to_string(),
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        bytes: bytes.into(),
        tags: vec![tag.to_owned()],
        ..pb::PutManifest::default()
    })
}

/// Pushes through one node, for ever. After a push of unknown outcome, which may still take effect
/// after a later one, it goes on with another tag.
pub async fn keep_pushing(world: Arc<World>, notes: Notes, node: &'static str) {
    let (mut series, mut version) = (0, 0);
    loop {
        version += 1;
        let tag = format!("{node}-{series}");
        notes
            .lock()
            .unwrap()
            .tags
            .entry(tag.clone())
            .or_default()
            .attempted = version;
        let body = push(&tag, version);
        let written = world.on(node, |metadata| async move {
            metadata.write(body, Budget::default()).await
        });
        let outcome = written
            .await
            .and_then(Result::ok)
            .and_then(|outcome| outcome.result);
        if matches!(outcome, Some(pb::outcome::Result::Done(_))) {
            let mut book = notes.lock().unwrap();
            book.pushes += 1;
            book.tags.entry(tag).or_default().acknowledged = version;
        } else {
            (series, version) = (series + 1, 0);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub async fn tagged(metadata: &Metadata, tag: &str) -> Option<(u64, bool)> {
    let (repository, tag) = (
        REPOSITORY.parse::<RepositoryName>().ok()?,
        tag.parse::<Tag>().ok()?,
    );
    let read = metadata.read(move |view| view.manifest_by_tag(&repository, &tag));
    let read = read.await.ok()?;
    let version = read.value.map_or(0, |manifest| version_of(&manifest.bytes));
    Some((version, read.staleness.is_none()))
}

/// Reads the newest tags through one node, for ever: what is not marked must be complete.
pub async fn keep_pulling(world: Arc<World>, notes: Notes, node: &'static str) {
    loop {
        let newest: Vec<(String, u64)> = {
            let book = notes.lock().unwrap();
            let acknowledged = book
                .tags
                .iter()
                .filter(|(_, history)| history.acknowledged > 0);
            acknowledged
                .rev()
                .take(4)
                .map(|(tag, history)| (tag.clone(), history.acknowledged))
                .collect()
        };
        for (tag, floor) in newest {
            let name = tag.clone();
            let read = world.on(
                node,
                |metadata| async move { tagged(&metadata, &name).await },
            );
            let mut found = None;
            if let Some(Some((version, is_unmarked))) = read.await {
                found = Some((version, is_unmarked));
                let mut book = notes.lock().unwrap();
                if is_unmarked {
                    book.unmarked += 1
                } else {
                    book.marked += 1
                }
                assert!(
                    !is_unmarked || version >= floor,
                    "{node} answered {tag} with version {version}, unmarked; {floor} was acknowledged before"
                );
            }
            tracing::debug!(node, tag, floor, ?found, "pull");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
