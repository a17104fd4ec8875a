//! Codes of names, of lists, and of what is no endpoint.

use super::with_image;
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn code_name_invalid_before_anything_is_looked_up() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let (digest, long) = (&image.blobs[0].0, "a".repeat(256));
    for name in [
        "App",
        "-a",
        "a.",
        "a..b",
        "a___b",
        "a/b//c",
        "a%2fb",
        "caf%C3%A9",
        "a:b",
        "a b",
        &long,
    ] {
        for (method, path) in [
            (Method::GET, "tags/list".to_owned()),
            (Method::GET, format!("blobs/{digest}")),
            (Method::DELETE, format!("blobs/{digest}")),
            (Method::GET, "manifests/v1".to_owned()),
            (Method::PUT, "manifests/v1".to_owned()),
            (Method::DELETE, "manifests/v1".to_owned()),
            (Method::POST, "blobs/uploads/".to_owned()),
            (Method::PATCH, "blobs/uploads/none".to_owned()),
            (Method::GET, format!("referrers/{digest}")),
        ] {
            let answer = api.ask(method, &format!("/v2/{name}/{path}")).await;
            answer
                .refused(400, "NAME_INVALID")
                .says("not a repository name");
        }
    }
    assert_eq!(api.stored().await, before);
    let longest = api.begin(&"a".repeat(255)).await;
    api.delete(&longest).await.is(204);
    // Words of the API are names like any other.
    for name in [
        "blobs",
        "tags/list",
        "a/manifests",
        "v2/referrers/x",
        "blobs/uploads",
    ] {
        api.push(name, "uploads", &image).await;
        api.client.pull(name, "uploads", &image).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_name_unknown_of_a_repository_without_a_manifest() {
    let (api, image) = with_image().await;
    let list = "/v2/app/tags/list";
    for path in ["/v2/never/tags/list", "/v2/app/more/tags/list?n=1"] {
        api.get(path).await.refused(404, "NAME_UNKNOWN");
        api.head(path).await.is(404);
    }
    let manifest = format!("/v2/app/manifests/{}", image.digest);
    api.delete("/v2/app/manifests/v1").await.is(202);
    api.get(list).await.is(200);
    api.delete(&manifest).await.is(202);
    api.get(list).await.refused(404, "NAME_UNKNOWN");
    api.push("app", "v2", &image).await;
    api.get(list).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_pagination_number_invalid_of_what_is_no_count() {
    let (api, _) = with_image().await;
    for n in ["-1", "ten", "", "1.5", "%2B1", "0x1", "1e3", "%00"] {
        for list in ["/v2/app/tags/list", "/v2/_catalog"] {
            let answer = api.get(&format!("{list}?n={n}")).await;
            let refused = answer.refused(400, "PAGINATION_NUMBER_INVALID");
            refused.says("a number from 0 up");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_unsupported_says_what_is_taken() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let digest = &image.blobs[0].0;
    for (method, path, allow) in [
        (Method::POST, "/v2/".to_owned(), "GET, HEAD, OPTIONS"),
        (Method::DELETE, "/v2/_catalog".to_owned(), "GET, HEAD"),
        (Method::POST, "/v2/app/tags/list".to_owned(), "GET, HEAD"),
        (
            Method::PUT,
            format!("/v2/app/referrers/{digest}"),
            "GET, HEAD",
        ),
        (
            Method::PUT,
            format!("/v2/app/blobs/{digest}"),
            "GET, HEAD, DELETE",
        ),
        (
            Method::POST,
            "/v2/app/manifests/v1".to_owned(),
            "GET, HEAD, PUT, DELETE",
        ),
        (Method::GET, "/v2/app/blobs/uploads/".to_owned(), "POST"),
        (
            Method::POST,
            "/v2/app/blobs/uploads/none".to_owned(),
            "GET, HEAD, PATCH, PUT, DELETE",
        ),
        // In use: end_10 shows how it comes to be deleted.
        (
            Method::DELETE,
            format!("/v2/app/blobs/{digest}"),
            "GET, HEAD",
        ),
    ] {
        let answer = api.ask(method, &path).await.refused(405, "UNSUPPORTED");
        answer.has("allow", allow);
    }
    for path in [
        "/v2/app",
        "/v2/app/nothing/here",
        "/v3/",
        "/v2/../../etc/passwd",
    ] {
        api.get(path)
            .await
            .refused(404, "UNSUPPORTED")
            .says("no such endpoint");
    }
    let long = format!("/v2/app/tags/list?last={}", "a".repeat(9000));
    api.get(&long)
        .await
        .refused(414, "UNSUPPORTED")
        .says("8192");
    let lunch = api.get("/healthz?for=lunch").await;
    lunch.refused(400, "UNSUPPORTED").says("pulls or pushes");
    assert_eq!(api.stored().await, before);
}
