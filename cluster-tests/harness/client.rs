//! A small OCI client for what the real ones cannot do: odd requests, many at once, headers looked
//! at. Real clients are in `images.rs`.

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use roadstead::oci::{Algorithm, Digest};
use serde_json::{Value, json};
use std::time::Duration;

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
    /// Shown with each request.
    login: Option<(String, String)>,
}

/// An image made up in memory: blobs, and the manifest that names them.
#[derive(Clone)]
pub struct Image {
    pub blobs: Vec<(Digest, Bytes)>,
    pub manifest: Bytes,
    pub digest: Digest,
}

impl Image {
    /// A config and the given layers; `salt` makes it one of a kind.
    pub fn new(salt: &str, layers: Vec<Bytes>) -> Image {
        let config =
            Bytes::from(json!({"architecture": "amd64", "os": "linux", "salt": salt}).to_string());
        let mut blobs = vec![(sha256(&config), config)];
        blobs.extend(layers.into_iter().map(|layer| (sha256(&layer), layer)));
        let descriptor = |(digest, bytes): &(Digest, Bytes), media_type: &str| json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": descriptor(&blobs[0], "application/vnd.oci.image.config.v1+json"),
            "layers": blobs[1..]
                .iter()
                .map(|blob| descriptor(blob, "application/vnd.oci.image.layer.v1.tar"))
                .collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        Image {
            digest: sha256(&manifest),
            blobs,
            manifest,
        }
    }

    /// One small layer made from `salt`.
    pub fn small(salt: &str) -> Image {
        Image::new(salt, vec![Bytes::from(format!("layer of {salt}"))])
    }

    /// The same, with an annotation that makes its manifest about so long.
    pub fn with_long_manifest(salt: &str, len: usize) -> Image {
        let mut image = Image::small(salt);
        image.manifest = Bytes::from(image.annotated("long", &"x".repeat(len)));
        image.digest = sha256(&image.manifest);
        image
    }

    /// Its manifest with an annotation more, and so with another digest.
    pub fn annotated(&self, key: &str, value: &str) -> Vec<u8> {
        let text = std::str::from_utf8(&self.manifest).expect("JSON");
        let open = text.strip_suffix('}').expect("an object");
        format!("{open},\"annotations\":{{\"{key}\":\"{value}\"}}}}").into_bytes()
    }
}

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// Bytes that do not compress and that a seed gives again.
pub fn random_bytes(seed: u64, len: usize) -> Bytes {
    use rand::{RngExt, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    Bytes::from(bytes)
}

impl Client {
    pub fn new(registry: &str) -> Client {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("build client");
        Client {
            base: format!("http://{registry}"),
            http,
            login: None,
        }
    }

    /// The same, logged in (Basic).
    pub fn logged_in(&self, name: &str, password: &str) -> Client {
        Client {
            login: Some((name.to_owned(), password.to_owned())),
            ..self.clone()
        }
    }

    pub fn anonymous(&self) -> Client {
        Client {
            login: None,
            ..self.clone()
        }
    }

    /// Over TLS, or otherwise by a client of the test's own.
    #[allow(dead_code, reason = "the bench does not use it")]
    pub fn over(base: String, http: reqwest::Client) -> Client {
        Client {
            base,
            http,
            login: None,
        }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.base)
        };
        let request = self.http.request(method, url);
        match &self.login {
            Some((name, password)) => request.basic_auth(name, Some(password)),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> reqwest::Result<Response> {
        self.request(Method::GET, path).send().await
    }

    /// None when the server does not answer, or not with JSON.
    pub async fn json(&self, path: &str) -> Option<Value> {
        let request = self
            .request(Method::GET, path)
            .timeout(Duration::from_secs(3));
        request.send().await.ok()?.json().await.ok()
    }

    /// POST, then one PUT, as most clients do.
    pub async fn push_blob(
        &self,
        repository: &str,
        digest: &Digest,
        bytes: Bytes,
    ) -> reqwest::Result<StatusCode> {
        let started = self
            .request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"))
            .send()
            .await?;
        if started.status() != StatusCode::ACCEPTED {
            return Ok(started.status());
        }
        let location = started.headers()["location"]
            .to_str()
            .expect("ascii")
            .to_owned();
        let put = self
            .request(Method::PUT, &location)
            .query(&[("digest", digest.to_string())]);
        Ok(put.body(bytes).send().await?.status())
    }

    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Bytes,
    ) -> reqwest::Result<Response> {
        self.request(
            Method::PUT,
            &format!("/v2/{repository}/manifests/{reference}"),
        )
        .header("content-type", IMAGE)
        .body(manifest)
        .send()
        .await
    }

    /// Everything of an image, then its manifest under `tag`. The status of the first step that
    /// was not 201, or 201.
    pub async fn push(
        &self,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> reqwest::Result<StatusCode> {
        for (digest, bytes) in &image.blobs {
            let status = self.push_blob(repository, digest, bytes.clone()).await?;
            if status != StatusCode::CREATED {
                return Ok(status);
            }
        }
        Ok(self
            .put_manifest(repository, tag, image.manifest.clone())
            .await?
            .status())
    }

    pub async fn manifest(&self, repository: &str, reference: &str) -> reqwest::Result<Response> {
        self.request(
            Method::GET,
            &format!("/v2/{repository}/manifests/{reference}"),
        )
        .header("accept", IMAGE)
        .send()
        .await
    }

    pub async fn blob(&self, repository: &str, digest: &Digest) -> reqwest::Result<Response> {
        self.get(&format!("/v2/{repository}/blobs/{digest}")).await
    }

    /// Pulls the manifest under `reference` and all that it names; every byte compared.
    pub async fn pull(
        &self,
        repository: &str,
        reference: &str,
        image: &Image,
    ) -> Result<(), String> {
        let answer = self
            .manifest(repository, reference)
            .await
            .map_err(|e| e.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("manifest {reference}: {}", answer.status()));
        }
        let bytes = answer.bytes().await.map_err(|e| e.to_string())?;
        if bytes != image.manifest {
            return Err(format!("manifest {reference}: another manifest"));
        }
        for (digest, expected) in &image.blobs {
            let answer = self
                .blob(repository, digest)
                .await
                .map_err(|e| e.to_string())?;
            if answer.status() != StatusCode::OK {
                return Err(format!("blob {digest}: {}", answer.status()));
            }
            let bytes = answer
                .bytes()
                .await
                .map_err(|e| format!("blob {digest}: {e}"))?;
            if bytes != *expected {
                return Err(format!("blob {digest}: other bytes"));
            }
        }
        Ok(())
    }
}
