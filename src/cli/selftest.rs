//! `roadstead selftest`: pushes a tiny image of random bytes the way any client does, reads it
//! back from every server that is named, compares it byte for byte, and deletes it.

use super::client::Client;
use super::client::Connection;
use super::output;
use super::output::Failure;
use super::output::Format;
use super::output::chain;
use bytes::Bytes;
use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::header;
use sha2::Digest;
use std::time::Duration;
use std::time::Instant;

const WAIT: Duration = Duration::from_secs(60);
const REPOSITORY: &str = "roadstead-selftest";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A blob or a manifest with its name.
struct Content {
    digest: String,
    bytes: Bytes,
}

impl Content {
    fn new(bytes: impl Into<Bytes>) -> Content {
        let bytes = bytes.into();
        let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)));
        Content { digest, bytes }
    }
}

struct Image {
    layer: Content,
    config: Content,
    manifest: Content,
}

impl Image {
    fn random() -> Image {
        let mut layer = vec![0; 64 * 1024];
        rand::fill(layer.as_mut_slice());
        let layer = Content::new(layer);
        let config = Content::new(
            serde_json::json!({
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            })
            .to_string(),
        );
        let descriptor = |media_type: &str, content: &Content| {
            serde_json::json!({
                "mediaType": media_type,
                "digest": content.digest,
                "size": content.bytes.len(),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
        });
        Image {
            manifest: Content::new(manifest.to_string()),
            layer,
            config,
        }
    }
}

pub async fn run(connection: Connection, format: Format) -> Result<(), Failure> {
    let client = connection.open()?;
    let origin = first_that_answers(&client).await?;
    let mut report = Report {
        format,
        steps: Vec::new(),
    };
    let image = Image::random();
    let tag = format!(
        "t{}",
        image.manifest.digest[7..].get(..16).unwrap_or_default()
    );

    for blob in [&image.layer, &image.config] {
        let what = format!("push a blob to {origin}");
        report
            .step(&what, push_blob(&client, &origin, blob))
            .await?;
    }
    let what = format!("push the image to {origin}");
    report
        .step(
            &what,
            push_manifest(&client, &origin, &tag, &image.manifest),
        )
        .await?;
    let mut read = Ok(());
    for server in client.servers() {
        let what = format!("pull the image from {server}");
        read = read.and(
            report
                .step(&what, pull(&client, server, &tag, &image))
                .await,
        );
    }
    // Also after a failure: a check leaves nothing behind.
    let what = format!("delete the image on {origin}");
    let deleted = report.step(&what, delete(&client, &origin, &image)).await;
    read.and(deleted)?;
    report.end()
}

/// The steps as they are done: lines at once, or one JSON document at the end.
struct Report {
    format: Format,
    steps: Vec<serde_json::Value>,
}

impl Report {
    async fn step(
        &mut self,
        what: &str,
        work: impl Future<Output = Result<(), String>>,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let result = work.await;
        let ms = begun.elapsed().as_millis();
        match self.format {
            Format::Json => self
                .steps
                .push(serde_json::json!({"step": what, "ok": result.is_ok(), "milliseconds": ms})),
            Format::Table => {
                let word = if result.is_ok() { "ok  " } else { "FAIL" };
                output::print(&format!("{word}  {what} ({ms} ms)\n"))?;
            }
        }
        result.map_err(|why| {
            Failure::limit(
                format!("could not {what}: {why}"),
                "`roadstead status` says whether pushes and pulls work now",
            )
        })
    }

    fn end(self) -> Result<(), Failure> {
        match self.format {
            Format::Json => output::json(&serde_json::json!({"ok": true, "steps": self.steps})),
            Format::Table => output::print("every step passed\n"),
        }
    }
}

async fn first_that_answers(client: &Client) -> Result<String, Failure> {
    let mut silent = Vec::new();
    for server in client.servers() {
        let asked = client.request(Method::GET, &format!("{server}/v2/"));
        match asked.timeout(Duration::from_secs(10)).send().await {
            Ok(_) => return Ok(server.clone()),
            Err(error) => silent.push(format!("{server}: {}", chain(&error))),
        }
    }
    Err(Failure::no_server(
        format!("no server answered ({})", silent.join("; ")),
        "start one, or name one that runs with --server URL[,URL…]",
    ))
}

async fn push_blob(client: &Client, server: &str, blob: &Content) -> Result<(), String> {
    let begin = client.request(
        Method::POST,
        &format!("{server}/v2/{REPOSITORY}/blobs/uploads/"),
    );
    let begun = expect(begin, StatusCode::ACCEPTED).await?;
    let location = begun
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.ok_or("the server named no Location for the upload")?;
    let base = begun
        .url()
        .join(location)
        .map_err(|error| error.to_string())?;
    let mut url = base.clone();
    url.query_pairs_mut().append_pair("digest", &blob.digest);
    let put = client
        .request(Method::PUT, url.as_str())
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(blob.bytes.clone());
    expect(put, StatusCode::CREATED).await.map(drop)
}

async fn push_manifest(
    client: &Client,
    server: &str,
    tag: &str,
    manifest: &Content,
) -> Result<(), String> {
    let put = client
        .request(
            Method::PUT,
            &format!("{server}/v2/{REPOSITORY}/manifests/{tag}"),
        )
        .header(header::CONTENT_TYPE, MANIFEST)
        .body(manifest.bytes.clone());
    expect(put, StatusCode::CREATED).await.map(drop)
}

async fn pull(client: &Client, server: &str, tag: &str, image: &Image) -> Result<(), String> {
    let url = format!("{server}/v2/{REPOSITORY}");
    let manifest = client
        .request(Method::GET, &format!("{url}/manifests/{tag}"))
        .header(header::ACCEPT, MANIFEST);
    compare(manifest, &image.manifest).await?;
    for blob in [&image.config, &image.layer] {
        compare(
            client.request(Method::GET, &format!("{url}/blobs/{}", blob.digest)),
            blob,
        )
        .await?;
    }
    Ok(())
}

async fn compare(request: RequestBuilder, content: &Content) -> Result<(), String> {
    let response = expect(request, StatusCode::OK).await?;
    let bytes = response.bytes().await.map_err(|error| chain(&error))?;
    if bytes == content.bytes {
        return Ok(());
    }
    Err(format!(
        "{} came back with other bytes than were pushed",
        content.digest
    ))
}

async fn delete(client: &Client, server: &str, image: &Image) -> Result<(), String> {
    let url = format!("{server}/v2/{REPOSITORY}");
    let manifest = format!("{url}/manifests/{}", image.manifest.digest);
    expect(
        client.request(Method::DELETE, &manifest),
        StatusCode::ACCEPTED,
    )
    .await?;
    for blob in [&image.config, &image.layer] {
        let blob = format!("{url}/blobs/{}", blob.digest);
        expect(client.request(Method::DELETE, &blob), StatusCode::ACCEPTED).await?;
    }
    Ok(())
}

async fn expect(request: RequestBuilder, status: StatusCode) -> Result<Response, String> {
    let response = request
        .timeout(WAIT)
        .send()
        .await
        .map_err(|error| chain(&error))?;
    if response.status() == status {
        return Ok(response);
    }
    let got = response.status();
    let body = response.text().await.unwrap_or_default();
    let body: String = body.chars().take(300).collect();
    Err(format!("expected {status}, got {got} {body}"))
}
