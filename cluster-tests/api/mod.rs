//! The registry API, row by row: a test for each endpoint (`end_…`, by its number in the
//! distribution spec), for what is beside the spec (`ext_…`), and for each error code (`code_…`).
//! docs/registry-api.md names them all, and cluster-tests/layers.rs holds it to that.
//!
//! Whatever is asked here, what every answer must have is looked at too.

mod blobs;
mod codes;
mod failures;
mod lists;
mod logins;
mod manifests;
mod uploads;

use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use roadstead::oci::{Digest, OCI_INDEX};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One region, and what is asked of it.
struct Api {
    cluster: Cluster,
    client: Client,
}

struct Answer {
    what: String,
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Api {
    async fn start() -> Api {
        Api::of(Cluster::start_direct(1, &[]).await)
    }

    fn of(cluster: Cluster) -> Api {
        Api {
            client: cluster.client(0),
            cluster,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, path)
    }

    fn over_http_2(&self, method: Method, path: &str) -> RequestBuilder {
        let client = reqwest::Client::builder().no_proxy();
        let client = client.http2_prior_knowledge().build().unwrap();
        client.request(method, format!("http://{}{path}", self.cluster.registry(0)))
    }

    /// The answer, with what every answer has.
    fn send(&self, request: RequestBuilder) -> impl Future<Output = Answer> + use<> {
        answer(request)
    }

    fn ask(&self, method: Method, path: &str) -> impl Future<Output = Answer> + use<> {
        answer(self.request(method, path))
    }

    fn get(&self, path: &str) -> impl Future<Output = Answer> + use<> {
        self.ask(Method::GET, path)
    }

    fn head(&self, path: &str) -> impl Future<Output = Answer> + use<> {
        self.ask(Method::HEAD, path)
    }

    fn delete(&self, path: &str) -> impl Future<Output = Answer> + use<> {
        self.ask(Method::DELETE, path)
    }

    fn post(&self, path: &str) -> impl Future<Output = Answer> + use<> {
        self.ask(Method::POST, path)
    }

    /// A session for the repository, and where it is.
    async fn begin(&self, repository: &str) -> String {
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        self.post(&uploads).await.is(202).header("location").into()
    }

    async fn patch(&self, upload: &str, range: &str, bytes: &'static str) -> Answer {
        let request = self.request(Method::PATCH, upload);
        let request = request.header("content-range", range);
        self.send(request.body(bytes)).await
    }

    async fn finish(&self, upload: &str, digest: &Digest, bytes: impl Into<Bytes>) -> Answer {
        let request = self.request(Method::PUT, &format!("{upload}?digest={digest}"));
        self.send(request.body(bytes.into())).await
    }

    fn put(
        &self,
        repository: &str,
        reference: &str,
        kind: &str,
        bytes: Bytes,
    ) -> impl Future<Output = Answer> + use<> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let request = self.request(Method::PUT, &path).body(bytes);
        self.send(request.header("content-type", kind))
    }

    async fn push_blobs(&self, repository: &str, image: &Image) {
        for (digest, bytes) in &image.blobs {
            let pushed = self.client.push_blob(repository, digest, bytes.clone());
            assert_eq!(pushed.await.unwrap(), 201);
        }
    }

    async fn push(&self, repository: &str, tag: &str, image: &Image) {
        let pushed = self.client.push(repository, tag, image).await;
        assert_eq!(pushed.unwrap(), 201, "{repository}:{tag}");
    }

    /// Repositories with their tags, and the files of blobs: what a request may have changed.
    async fn stored(&self) -> (BTreeMap<String, Value>, Vec<PathBuf>) {
        let mut repositories = BTreeMap::new();
        let catalog = self.get("/v2/_catalog").await.is(200).json();
        for name in catalog["repositories"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let tags = self.get(&format!("/v2/{name}/tags/list")).await.is(200);
            repositories.insert(name.to_owned(), tags.json());
        }
        let mut blobs = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let dir = self.cluster.data_dir(0).join("blobs").join(algorithm);
            files(&dir, &mut blobs);
        }
        blobs.sort();
        (repositories, blobs)
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let (http, request) = request.build_split();
    let request = request.unwrap();
    let what = format!("{} {}", request.method(), request.url());
    let is_head = request.method() == Method::HEAD;
    let answer = http.execute(request).await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    let answer = Answer {
        what,
        status,
        headers,
        body,
    };
    answer.has("docker-distribution-api-version", "registry/2.0");
    answer.has("roadstead-region", "r1");
    let (lineage, index) = answer.header("roadstead-index").split_once(':').unwrap();
    assert!(lineage.len() == 32 && index.parse::<u64>().is_ok());
    assert_eq!(answer.header("roadstead-request").len(), 16);
    answer.lacks("content-encoding");
    answer.lacks("transfer-encoding");
    match status {
        204 | 304 => answer.lacks("content-length"),
        _ if is_head => answer.has("content-length", answer.header("content-length")),
        _ => answer.has("content-length", &answer.body.len().to_string()),
    };
    assert!(!is_head || answer.body.is_empty(), "{}", answer.what);
    answer
}

impl Answer {
    fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}: {:?}", self.what, self.body);
        self
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("{}: no {name}", self.what));
        value.to_str().unwrap()
    }

    fn has(&self, name: &str, value: &str) -> &Answer {
        assert_eq!(self.header(name), value, "{}: {name}", self.what);
        self
    }

    fn lacks(&self, name: &str) -> &Answer {
        let value = self.headers.get(name);
        assert_eq!(value, None, "{}: {name}", self.what);
        self
    }

    fn json(&self) -> Value {
        let told = || format!("{}: {:?}", self.what, self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", told()))
    }

    /// An error body of the spec: only errors, each with this code and a message. The details.
    fn refused(self, status: u16, code: &str) -> Refusal {
        let answer = self.is(status);
        answer.has("content-type", "application/json");
        let body = answer.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        let errors = body["errors"].as_array().unwrap();
        let mut details = Vec::new();
        for error in errors {
            assert_eq!(error["code"], code, "{}: {body}", answer.what);
            assert!(!error["message"].as_str().unwrap().is_empty(), "{body}");
            details.extend(error.get("detail").cloned());
        }
        let message = errors[0]["message"].as_str().unwrap().to_owned();
        Refusal {
            answer,
            message,
            details,
        }
    }
}

struct Refusal {
    answer: Answer,
    message: String,
    details: Vec<Value>,
}

impl Refusal {
    fn has(&self, name: &str, value: &str) -> &Refusal {
        self.answer.has(name, value);
        self
    }

    fn says(&self, part: &str) -> &Refusal {
        let message = &self.message;
        assert!(message.contains(part), "{part:?} is not in {message:?}");
        self
    }
}

/// An index that names images by their manifests.
fn index_of(images: &[&Image]) -> Bytes {
    let entry = |image: &&Image| json!({"mediaType": crate::harness::client::IMAGE, "digest": image.digest.to_string(), "size": image.manifest.len()});
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    Bytes::from(index.to_string())
}

/// The image with more in its manifest.
fn with(image: &Image, name: &str, value: Value) -> Bytes {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest[name] = value;
    Bytes::from(manifest.to_string())
}
