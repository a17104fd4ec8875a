//! A proxy ends TLS under another host name and tells the registry nothing of it: pushes and pulls
//! work, and no answer shows an address that only the proxy can reach.

use crate::harness::client::{IMAGE, Image, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::daemons::TlsProxy;
use crate::harness::layouts::Layout;
use crate::harness::tools::{go, patiently, said};
use reqwest::{Certificate, Method, Response};
use std::process::Command;

const NAME: &str = "registry.example";

async fn three_behind_tls() -> (Cluster, TlsProxy) {
    let cluster = Cluster::start(3).await;
    let regions: Vec<String> = (0..3).map(|i| cluster.registry(i)).collect();
    let proxy = TlsProxy::start(&regions, &[NAME, "localhost"]).await;
    (cluster, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_push_and_pull_under_the_name_of_the_proxy() {
    let (_cluster, proxy) = three_behind_tls().await;
    let images = tempfile::tempdir().expect("temp dir");
    let image = Layout::new(images.path(), "tls", &["amd64", "arm64"], &[100_000, 3000]);
    let at = |i: usize, name: &str| format!("localhost:{}/{name}:v1", proxy.addresses[i].port());
    // Both trust nothing but the certificate of the proxy.
    let trusting = |mut command: Command| {
        command.env("SSL_CERT_FILE", proxy.certificate());
        command
    };
    let skopeo = |from: &str, to: &str| {
        let copy = ["copy", "--all", "--preserve-digests", from, to];
        said(trusting(patiently("skopeo")).args(copy)).unwrap();
    };
    let pulled = images.path().join("skopeo");
    let (first, second) = (at(0, "tls/skopeo"), at(1, "tls/skopeo"));
    skopeo(
        &format!("oci:{}", image.tagged()),
        &format!("docker://{first}"),
    );
    skopeo(
        &format!("docker://{second}"),
        &format!("oci:{}:t", pulled.display()),
    );
    image.same_blobs_in(&pulled).unwrap();

    let pulled = images.path().join("crane");
    let mut push = trusting(go("crane"));
    said(
        push.args(["push", "--index"])
            .arg(&image.dir)
            .arg(at(1, "tls/crane")),
    )
    .unwrap();
    let mut pull = trusting(go("crane"));
    said(
        pull.args(["pull", "--format=oci", &at(2, "tls/crane")])
            .arg(&pulled),
    )
    .unwrap();
    image.same_blobs_in(&pulled).unwrap();
}

/// Speaks to region 0 through the proxy, and looks at every header that comes back.
struct Outside {
    http: reqwest::Client,
    base: String,
    /// How the nodes are reached behind the proxy.
    inner: Vec<String>,
}

impl Outside {
    /// The answer, which must have this status and this header, with where that leads.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        with: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
        (status, leads_on): (u16, Option<&str>),
    ) -> String {
        let request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base));
        let answer = with(request).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        self.shows_nothing_inner(&answer);
        let Some(leads_on) = leads_on else {
            return String::new();
        };
        let value = answer.headers()[leads_on].to_str().unwrap();
        let target = value.trim_start_matches('<').split('>').next().unwrap();
        let url = answer.url().join(target).unwrap().to_string();
        let path = url.strip_prefix(&self.base);
        path.unwrap_or_else(|| panic!("{leads_on} leads away: {value}"))
            .to_owned()
    }

    fn shows_nothing_inner(&self, answer: &Response) {
        for (name, value) in answer.headers() {
            let value = String::from_utf8_lossy(value.as_bytes());
            let shown = self.inner.iter().find(|inner| value.contains(*inner));
            assert!(shown.is_none(), "{}: {name}: {value}", answer.url());
            assert!(
                !value.contains("http:"),
                "{}: {name}: {value}",
                answer.url()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_shows_an_address_behind_the_proxy() {
    let (cluster, proxy) = three_behind_tls().await;
    let certificate = std::fs::read(proxy.certificate()).unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&certificate).unwrap()])
        .resolve(NAME, proxy.addresses[0])
        .build()
        .unwrap();
    let nodes = (0..3).flat_map(|i| [cluster.registry(i), cluster.ops(i)]);
    let outside = Outside {
        http,
        base: format!("https://{NAME}:{}", proxy.addresses[0].port()),
        inner: nodes.chain(["127.0.0.".to_owned()]).collect(),
    };
    let plain = |request| request;
    let (location, link) = (Some("location"), Some("link"));
    let ask = |method, path: String, status, leads_on| {
        let outside = &outside;
        async move { outside.ask(method, &path, plain, (status, leads_on)).await }
    };
    ask(Method::GET, "/v2/".into(), 200, None).await;

    let image = Image::small("behind tls");
    let uploads = "/v2/tls/app/blobs/uploads/".to_owned();
    for (digest, bytes) in &image.blobs {
        let upload = ask(Method::POST, uploads.clone(), 202, location).await;
        let (first, rest) = (bytes.slice(..4), bytes.slice(4..));
        let chunk = |from: &str| {
            let (from, bytes) = (from.to_owned(), first.clone());
            move |request: reqwest::RequestBuilder| {
                request.header("content-range", from).body(bytes)
            }
        };
        let early = (416, location);
        outside
            .ask(Method::PATCH, &upload, chunk("7-10"), early)
            .await;
        let taken = (202, location);
        let upload = outside
            .ask(Method::PATCH, &upload, chunk("0-3"), taken)
            .await;
        let upload = ask(Method::GET, upload, 204, location).await;
        let digest = digest.to_string();
        let put =
            |request: reqwest::RequestBuilder| request.query(&[("digest", digest)]).body(rest);
        let blob = outside
            .ask(Method::PUT, &upload, put, (201, location))
            .await;
        ask(Method::GET, blob, 200, None).await;
    }
    let whole = format!("{uploads}?digest={}", sha256(b"whole"));
    let body = |request: reqwest::RequestBuilder| request.body("whole");
    let blob = outside
        .ask(Method::POST, &whole, body, (201, location))
        .await;
    ask(Method::HEAD, blob, 200, None).await;
    for tag in ["a", "b", "c"] {
        let put = |request: reqwest::RequestBuilder| {
            request
                .header("content-type", IMAGE)
                .body(image.manifest.clone())
        };
        let path = format!("/v2/tls/app/manifests/{tag}");
        let manifest = outside.ask(Method::PUT, &path, put, (201, location)).await;
        ask(Method::GET, manifest, 200, None).await;
    }
    let mount = |digest| format!("/v2/tls/other/blobs/uploads/?mount={digest}&from=tls/app");
    for (digest, _) in &image.blobs {
        let mounted = ask(Method::POST, mount(digest.clone()), 201, location).await;
        ask(Method::GET, mounted, 200, None).await;
    }
    let begun = ask(Method::POST, mount(sha256(b"nowhere")), 202, location).await;
    ask(Method::DELETE, begun, 204, None).await;
    let mut signature: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    signature["subject"] = serde_json::json!({
        "mediaType": IMAGE, "digest": image.digest.to_string(), "size": image.manifest.len()
    });
    let signed = |request: reqwest::RequestBuilder| {
        request
            .header("content-type", IMAGE)
            .body(signature.to_string())
    };
    let path = "/v2/tls/other/manifests/signature";
    outside
        .ask(Method::PUT, path, signed, (201, location))
        .await;
    ask(
        Method::GET,
        format!("/v2/tls/other/referrers/{}", image.digest),
        200,
        None,
    )
    .await;

    for first in ["/v2/tls/app/tags/list?n=1", "/v2/_catalog?n=1"] {
        let next = ask(Method::GET, first.into(), 200, link).await;
        ask(Method::GET, next, 200, None).await;
    }
    for unknown in [
        "/v2/tls/app/manifests/none",
        "/v2/tls/none/tags/list",
        "/v3",
    ] {
        ask(Method::GET, unknown.into(), 404, None).await;
    }
}
