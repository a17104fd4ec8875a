//! Real clients against three regions: each pushes to one region and pulls from another, with the
//! images and the mishaps that people have. What each does and how it ended is a row of the table
//! in `docs/clients.md`, which the run writes itself (`just long clients`).

mod special;
mod table;

use crate::harness::cluster::Cluster;
use crate::harness::daemons::{Containerd, Docker};
use crate::harness::layouts::Layout;
use crate::harness::proxy::Proxy;
use crate::harness::tools::{Crane, Engine, OciClient, Oras, Regctl, Skopeo, Tool};
use std::path::Path;
use std::time::Instant;
use table::{Column, Row};

const MIB: usize = 1 << 20;

/// Of a large layer. In CI a smaller one, which `ROADSTEAD_LAYER_MIB` sets; only the engines take
/// the full figure.
fn large(is_engine: bool) -> usize {
    let asked = std::env::var("ROADSTEAD_LAYER_MIB")
        .ok()
        .and_then(|mib| mib.parse().ok())
        .unwrap_or(32);
    MIB * if is_engine { asked } else { asked.min(100) }
}

/// Done, or done when the client was started again.
fn at_once_or_again(mut attempt: impl FnMut() -> Result<(), String>) -> Result<String, String> {
    match attempt() {
        Ok(()) => Ok("ok".into()),
        Err(first) => {
            let last = first.lines().last().unwrap_or_default();
            println!("clients: once more after: {last}");
            attempt()?;
            Ok("at the second try".into())
        }
    }
}

/// The cluster, a client, and what it did so far.
struct Trial<'a> {
    cluster: &'a Cluster,
    tool: &'a dyn Tool,
    images: &'a Path,
    row: Row,
}

impl Trial<'_> {
    fn layout(&self, name: &str, architectures: &[&'static str], layers: &[usize]) -> Layout {
        Layout::new(self.images, name, architectures, layers)
    }

    /// `REGISTRY/REPOSITORY:v1` at region `i`.
    fn at(&self, i: usize, repository: &str) -> String {
        self.via(&self.cluster.registry(i), repository)
    }

    fn via(&self, registry: &str, repository: &str) -> String {
        format!("{registry}/{}/{repository}:v1", self.tool.name())
    }

    fn note(&mut self, column: Column, started: Instant, result: Result<String, String>) {
        let name = self.tool.name();
        println!(
            "clients: {name}: {column:?} {:?} {result:?}",
            started.elapsed()
        );
        self.row.note(column, result);
    }

    /// Pushed to one region and pulled from another.
    fn there_and_back(
        &mut self,
        column: Column,
        repository: &str,
        image: &Layout,
        (to, from): (usize, usize),
    ) {
        let started = Instant::now();
        let result = self
            .tool
            .push(image, &self.at(to, repository))
            .and_then(|()| self.tool.pull(&self.at(from, repository), image));
        self.note(column, started, result.map(|()| "ok".into()));
    }

    /// The manifest that was deleted in one region is gone in all, for the client too.
    async fn delete(&mut self, repository: &str, image: &Layout) {
        let started = Instant::now();
        let Some(deleted) = self.tool.delete(&self.at(0, repository)) else {
            return;
        };
        let mut result = deleted.map(|()| "ok".into());
        for i in 0..self.cluster.len() {
            let repository = format!("{}/{repository}", self.tool.name());
            let left = self.cluster.client(i).manifest(&repository, "v1").await;
            let status = left.expect("an answer").status();
            if status != 404 {
                result = Err(format!("region {i} answers {status} after the delete"));
            }
        }
        if self.tool.pull(&self.at(1, repository), image).is_ok() {
            result = Err("pulled what was deleted".into());
        }
        self.note(Column::Delete, started, result);
    }

    /// The connection that carries the layer is closed in its middle.
    async fn cut(&mut self, size: usize) {
        let half = size as u64 / 2;
        let image = self.layout("cut-push", &["amd64"], &[size]);
        let started = Instant::now();
        let proxy = Proxy::cutting(&self.cluster.registry(1), half).await;
        let through = self.via(&proxy.registry(), "cut-push");
        let mut result = at_once_or_again(|| self.tool.push(&image, &through));
        if result.is_ok()
            && let Err(error) = self.tool.pull(&self.at(2, "cut-push"), &image)
        {
            result = Err(error);
        }
        self.note(Column::CutPush, started, result);
        assert!(proxy.has_cut(), "the push went on without a cut");

        let image = self.layout("cut-pull", &["amd64"], &[size]);
        let started = Instant::now();
        let proxy = Proxy::cutting(&self.cluster.registry(1), half).await;
        let through = self.via(&proxy.registry(), "cut-pull");
        let result = self
            .tool
            .push(&image, &self.at(0, "cut-pull"))
            .and_then(|()| at_once_or_again(|| self.tool.pull(&through, &image)));
        self.note(Column::CutPull, started, result);
        assert!(proxy.has_cut(), "the pull went on without a cut");
    }
}

async fn works(tool: &dyn Tool, large: usize) {
    let cluster = Cluster::start(3).await;
    put_through(&cluster, tool, large).await.finish();
}

async fn put_through(cluster: &Cluster, tool: &dyn Tool, large: usize) -> Row {
    let images = tempfile::tempdir().expect("temp dir");
    let mut trial = Trial {
        cluster,
        tool,
        images: images.path(),
        row: Row::new(tool.name(), &tool.version()),
    };
    let small = trial.layout("small", &["amd64"], &[2000, 3000]);
    trial.there_and_back(Column::Image, "app", &small, (0, 1));
    trial.there_and_back(Column::Again, "app", &small, (0, 2));
    let other = trial.layout("other", &["amd64"], &[2000, 4000]);
    trial.there_and_back(Column::Move, "app", &other, (0, 1));
    trial.delete("app", &other).await;
    let index = trial.layout("index", &["amd64", "arm64"], &[2000, 3000]);
    trial.there_and_back(Column::Index, "index", &index, (1, 2));
    let many = trial.layout("many", &["amd64"], &[1000; 100]);
    trial.there_and_back(Column::Layers, "many", &many, (2, 0));
    let big = trial.layout("large", &["amd64"], &[large]);
    trial.there_and_back(Column::Large, "large", &big, (2, 0));
    trial.cut(large.min(32 * MIB)).await;
    trial.row
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_works() {
    works(&Skopeo, large(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_works() {
    works(&Engine("podman"), large(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_works() {
    works(&Engine("buildah"), large(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_works() {
    works(&Docker::start().await, large(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_works() {
    works(&Containerd::start().await, large(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_works() {
    works(&Crane, large(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_works() {
    let cluster = Cluster::start(3).await;
    let mut row = put_through(&cluster, &Oras, large(false)).await;
    row.note(Column::Also, special::artifacts(&cluster));
    row.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn regctl_works() {
    works(&Regctl, large(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oci_client_crate_works() {
    works(&OciClient, large(false)).await;
}
