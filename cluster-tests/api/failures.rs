//! The codes of what is no fault of the request: it can be sent again as it is, when what they say
//! has been done.

use super::{Answer, Api, answer};
use crate::full_disk::{free, region};
use crate::harness::client::{IMAGE, Image, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use futures_util::{StreamExt, stream};
use reqwest::{Client, Method};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Uploads that one address may have open, and a node in all.
const OF_ONE: usize = 1000;
const OF_ALL: usize = 2000;

/// Of the client with that last number in its address.
fn client(n: u8) -> Client {
    let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, n));
    let client = Client::builder().no_proxy().local_address(address);
    client.build().unwrap()
}

impl Api {
    async fn begin_as(&self, client: &Client) -> Answer {
        let registry = self.cluster.registry(0);
        let uploads = format!("http://{registry}/v2/app/blobs/uploads/");
        answer(client.post(uploads)).await
    }

    /// As many as it may; where one of them is.
    async fn open_all_as(&self, client: &Client) -> String {
        let begun = stream::iter(0..OF_ONE).map(|_| self.begin_as(client));
        let begun: Vec<_> = begun.buffer_unordered(16).collect().await;
        let begun: Vec<_> = begun.into_iter().map(|answer| answer.is(202)).collect();
        begun[0].header("location").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_too_many_requests_of_one_address_until_it_ends_an_upload() {
    let api = Api::start().await;
    let (greedy, other) = (client(1), client(2));
    let one = api.open_all_as(&greedy).await;
    let refused = api.begin_as(&greedy).await.refused(429, "TOOMANYREQUESTS");
    refused
        .has("retry-after", "10")
        .says("1000 uploads from this address");
    api.begin_as(&other).await.is(202);
    api.delete(&one).await.is(204);
    api.begin_as(&greedy).await.is(202);
    api.begin_as(&greedy).await.refused(429, "TOOMANYREQUESTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_unavailable_of_a_node_with_all_the_uploads_that_it_takes() {
    let api = Api::start().await;
    let mut one = String::new();
    for n in 0..OF_ALL / OF_ONE {
        one = api.open_all_as(&client(1 + n as u8)).await;
    }
    let late = client(9);
    let refused = api.begin_as(&late).await.refused(503, "UNAVAILABLE");
    refused
        .has("retry-after", "10")
        .says("push to another region");
    refused.says(&format!(
        "(request {})",
        refused.answer.header("roadstead-request")
    ));
    api.delete(&one).await.is(204);
    api.begin_as(&late).await.is(202);
}

/// Held for as long as clients wait; then it is said that nobody knows, not that nothing is there.
#[tokio::test(flavor = "multi_thread")]
async fn code_unavailable_of_what_no_leader_can_confirm() {
    let mut cluster = Cluster::start(3).await;
    let image = Image::small("known");
    let pushed = cluster.client(0).push("app", "v1", &image).await;
    assert_eq!(pushed.unwrap(), 201);
    let everywhere = || async { cluster.client(0).pull("app", "v1", &image).await.ok() };
    eventually("all of it is here", Duration::from_secs(10), everywhere).await;
    cluster.kill(1);
    cluster.kill(2);
    let api = Api::of(cluster);
    let digest = sha256(b"nobody knows");
    let manifest = || (IMAGE, image.manifest.clone());
    let asked = [
        (Method::GET, "/v2/app/manifests/none".to_owned()),
        (Method::HEAD, "/v2/app/manifests/none".to_owned()),
        (Method::GET, format!("/v2/app/manifests/{digest}")),
        (Method::GET, "/v2/never/tags/list".to_owned()),
        (Method::GET, format!("/v2/app/blobs/{digest}")),
        (Method::PUT, "/v2/app/manifests/v2".to_owned()),
        (Method::DELETE, "/v2/app/manifests/v1".to_owned()),
        (
            Method::DELETE,
            format!("/v2/app/manifests/{}", image.digest),
        ),
    ];
    let asking = asked.into_iter().map(|(method, path)| {
        let is_head = method == Method::HEAD;
        let request = api.request(method, &path);
        let (kind, bytes) = manifest();
        let request = match path.ends_with("v2") {
            true => request.header("content-type", kind).body(bytes),
            false => request,
        };
        let sent = api.send(request.timeout(Duration::from_secs(45)));
        async move {
            let answer = sent.await.is(503);
            answer.has("retry-after", "10");
            if !is_head {
                answer.refused(503, "UNAVAILABLE");
            }
        }
    });
    futures_util::future::join_all(asking).await;
    api.client.pull("app", "v1", &image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn code_unavailable_507_of_a_disk_that_is_nearly_full() {
    // Blobs keep twice the reserve, which is more than there is.
    let api = Api::of(region(free() - (1 << 30)).await);
    let uploads = "/v2/app/blobs/uploads/";
    let refused = api.post(uploads).await.refused(507, "UNAVAILABLE");
    refused.says("nearly full").says("(request ");
    let whole = format!("{uploads}?digest={}", sha256(b"x"));
    let whole = api.request(Method::POST, &whole).body("x");
    api.send(whole).await.refused(507, "UNAVAILABLE");
    let (repositories, blobs) = api.stored().await;
    assert!(repositories.is_empty() && blobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn code_unknown_shows_the_client_an_id_and_the_log_the_cause() {
    let mut cluster = Cluster::start_direct(1, &[]).await;
    cluster.allow_error("request failed inside");
    let staging = cluster.data_dir(0).join("blobs/staging");
    let api = Api::of(cluster);
    let away = staging.with_extension("away");
    std::fs::rename(&staging, &away).unwrap();
    let refused = api.post("/v2/app/blobs/uploads/").await;
    let refused = refused.refused(500, "UNKNOWN");
    let id = refused.answer.header("roadstead-request");
    assert_eq!(refused.message, format!("internal error (request {id})"));
    let log = api.cluster.log_file(0);
    let told = || async {
        let log = std::fs::read_to_string(&log).unwrap();
        let line = log.lines().find(|line| line.contains("failed inside"));
        line.filter(|line| line.contains(id) && line.contains("No such file"))
            .map(str::to_owned)
    };
    eventually("the log has the cause", Duration::from_secs(10), told).await;
    std::fs::rename(&away, &staging).unwrap();
    api.post("/v2/app/blobs/uploads/").await.is(202);
}
