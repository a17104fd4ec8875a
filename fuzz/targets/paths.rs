//! Request lines, `METHOD PATH`: a path that is taken means one endpoint, and the path made from
//! what was understood means the same.

#![no_main]

use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use roadstead::http::fuzzing::Route;

/// The path of an endpoint as the spec writes it.
fn path(route: &Route) -> String {
    match route {
        Route::Health => "/healthz".into(),
        Route::Version | Route::VersionOptions => "/v2/".into(),
        Route::Catalog => "/v2/_catalog".into(),
        Route::GetToken | Route::PostToken => "/token".into(),
        Route::GetBlob(name, digest) | Route::DeleteBlob(name, digest) => {
            format!("/v2/{name}/blobs/{digest}")
        }
        Route::GetManifest(name, reference)
        | Route::PutManifest(name, reference)
        | Route::DeleteManifest(name, reference) => format!("/v2/{name}/manifests/{reference}"),
        Route::StartUpload(name) => format!("/v2/{name}/blobs/uploads/"),
        Route::UploadStatus(name, id)
        | Route::AppendUpload(name, id)
        | Route::FinishUpload(name, id)
        | Route::CancelUpload(name, id) => format!("/v2/{name}/blobs/uploads/{id}"),
        Route::Tags(name) => format!("/v2/{name}/tags/list"),
        Route::Referrers(name, digest) => format!("/v2/{name}/referrers/{digest}"),
    }
}

fuzz_target!(|text: &str| {
    let (method, target) = text.split_once(' ').unwrap_or(("GET", text));
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), target.parse::<Uri>()) else {
        return;
    };
    let route = match Route::of(&method, &uri) {
        Ok(route) => route,
        Err(refused) => {
            assert!(refused.to_string().len() < 4096);
            return;
        }
    };
    let given = uri.path();
    let spelled = path(&route);
    let again = spelled
        .parse::<Uri>()
        .expect("a name of ours needs no escape");
    assert_eq!(Route::of(&method, &again), Ok(route.clone()), "{spelled}");
    if let Some(name) = route.repository() {
        assert!(given.starts_with(&format!("/v2/{name}/")), "{given}");
    }
    if let Some(reference) = route.reference() {
        let plain = given.replace("%3A", ":").replace("%3a", ":");
        assert!(plain.ends_with(&format!("/{reference}")), "{given}");
    }
    assert!(!route.name().is_empty());
    // A digest's colon is all that may come escaped, and an upload's id is opaque.
    let is_upload = spelled.contains("/blobs/uploads/");
    assert!(is_upload || given.len() <= spelled.len() + 2, "{given}");
});
