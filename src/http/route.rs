//! Method and path → `Route`. The path is read as it came, before any decoding, and from the
//! right: names contain slashes, and may contain components called `blobs` or `tags`. Only `%3A`
//! in the last component is decoded, since some clients send a digest so; any other escape makes
//! a name or a reference invalid, so that no encoded slash or dot ever reaches the grammar.
//!
//! A `Route` holds parsed names only. What is not one of them is `Refused`, never a panic.

use crate::oci::Digest;
use crate::oci::DigestInvalid;
use crate::oci::NameInvalid;
use crate::oci::Reference;
use crate::oci::ReferenceInvalid;
use crate::oci::RepositoryName;
use crate::oci::TagInvalid;
use axum::http::Method;
use axum::http::Uri;
use std::borrow::Cow;

/// Session ids are made by this registry and are shorter.
const UPLOAD_ID_MAX: usize = 512;

/// Of path and query: room for some dozens of `tag=`.
const TARGET_MAX: usize = 8 << 10;

/// The endpoints of the distribution spec, by their names there; HEAD goes with GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, for load balancers.
    Health,
    /// end-1
    Version,
    /// OPTIONS of end-1.
    VersionOptions,
    Catalog,
    /// `/token`: who asks gets a short-lived token.
    GetToken,
    PostToken,
    /// end-2
    GetBlob(RepositoryName, Digest),
    /// end-10
    DeleteBlob(RepositoryName, Digest),
    /// end-3
    GetManifest(RepositoryName, Reference),
    /// end-7
    PutManifest(RepositoryName, Reference),
    /// end-9
    DeleteManifest(RepositoryName, Reference),
    /// end-4 and end-11
    StartUpload(RepositoryName),
    /// end-13
    UploadStatus(RepositoryName, String),
    /// end-5
    AppendUpload(RepositoryName, String),
    /// end-6
    FinishUpload(RepositoryName, String),
    /// end-14
    CancelUpload(RepositoryName, String),
    /// end-8
    Tags(RepositoryName),
    /// end-12
    Referrers(RepositoryName, Digest),
}

/// Why a request has no route.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("no such endpoint")]
    NotFound,
    #[error("this endpoint takes {allow}")]
    Method { allow: &'static str },
    #[error(transparent)]
    Name(#[from] NameInvalid),
    #[error(transparent)]
    Digest(#[from] DigestInvalid),
    /// On a push.
    #[error(transparent)]
    Tag(TagInvalid),
    /// On a pull: nothing can have been stored under it.
    #[error(transparent)]
    NoSuchTag(TagInvalid),
    #[error("upload unknown")]
    UploadUnknown,
    #[error("path and query are longer than {TARGET_MAX} bytes")]
    TooLong,
}

/// What a path names, not yet parsed.
#[derive(Clone, Copy, Debug)]
enum Resource<'a> {
    Health,
    Version,
    Catalog,
    Token,
    Blob(&'a str, &'a str),
    Manifest(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
}

impl<'a> Resource<'a> {
    fn of(path: &'a str) -> Option<Resource<'a>> {
        let rest = match path {
            "/healthz" => return Some(Resource::Health),
            "/token" => return Some(Resource::Token),
            "/v2" => return Some(Resource::Version),
            _ => path.strip_prefix("/v2/")?,
        };
        match rest {
            "" => return Some(Resource::Version),
            "_catalog" => return Some(Resource::Catalog),
            _ => {}
        }
        let (head, last) = rest.rsplit_once('/')?;
        if last.is_empty() {
            return head.strip_suffix("/blobs/uploads").map(Resource::Uploads);
        }
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            return Some(Resource::Upload(name, last));
        }
        let (name, kind) = head.rsplit_once('/')?;
        match (kind, last) {
            ("blobs", "uploads") => Some(Resource::Uploads(name)),
            ("blobs", digest) => Some(Resource::Blob(name, digest)),
            ("manifests", reference) => Some(Resource::Manifest(name, reference)),
            ("tags", "list") => Some(Resource::Tags(name)),
            ("referrers", digest) => Some(Resource::Referrers(name, digest)),
            _ => None,
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Resource::Version => "GET, HEAD, OPTIONS",
            Resource::Health | Resource::Catalog | Resource::Tags(_) | Resource::Referrers(..) => {
                "GET, HEAD"
            }
            Resource::Blob(..) => "GET, HEAD, DELETE",
            Resource::Manifest(..) => "GET, HEAD, PUT, DELETE",
            Resource::Uploads(_) => "POST",
            Resource::Token => "GET, HEAD, POST",
            Resource::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

impl Route {
    /// By the URI as it came.
    pub fn of(method: &Method, uri: &Uri) -> Result<Route, Refused> {
        let target = uri.path_and_query().map_or(0, |t| t.as_str().len());
        if target > TARGET_MAX {
            return Err(Refused::TooLong);
        }
        Route::parse(method, uri.path())
    }

    /// `path`: of the request's URI, undecoded.
    fn parse(method: &Method, path: &str) -> Result<Route, Refused> {
        let resource = Resource::of(path).ok_or(Refused::NotFound)?;
        // GET stands for HEAD from here on.
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        match (resource, method) {
            (Resource::Health, &Method::GET) => Ok(Route::Health),
            (Resource::Version, &Method::GET) => Ok(Route::Version),
            (Resource::Version, &Method::OPTIONS) => Ok(Route::VersionOptions),
            (Resource::Catalog, &Method::GET) => Ok(Route::Catalog),
            (Resource::Token, &Method::GET) => Ok(Route::GetToken),
            (Resource::Token, &Method::POST) => Ok(Route::PostToken),
            (Resource::Blob(name, digest), &Method::GET) => {
                Ok(Route::GetBlob(name.parse()?, parse_digest(digest)?))
            }
            (Resource::Blob(name, digest), &Method::DELETE) => {
                Ok(Route::DeleteBlob(name.parse()?, parse_digest(digest)?))
            }
            (Resource::Manifest(name, reference), &Method::GET) => {
                Ok(Route::GetManifest(name.parse()?, pulled(reference)?))
            }
            (Resource::Manifest(name, reference), &Method::DELETE) => {
                Ok(Route::DeleteManifest(name.parse()?, pulled(reference)?))
            }
            (Resource::Manifest(name, reference), &Method::PUT) => {
                Ok(Route::PutManifest(name.parse()?, pushed(reference)?))
            }
            (Resource::Uploads(name), &Method::POST) => Ok(Route::StartUpload(name.parse()?)),
            (Resource::Upload(name, id), &Method::GET) => {
                Ok(Route::UploadStatus(name.parse()?, upload_id(id)?))
            }
            (Resource::Upload(name, id), &Method::PATCH) => {
                Ok(Route::AppendUpload(name.parse()?, upload_id(id)?))
            }
            (Resource::Upload(name, id), &Method::PUT) => {
                Ok(Route::FinishUpload(name.parse()?, upload_id(id)?))
            }
            (Resource::Upload(name, id), &Method::DELETE) => {
                Ok(Route::CancelUpload(name.parse()?, upload_id(id)?))
            }
            (Resource::Tags(name), &Method::GET) => Ok(Route::Tags(name.parse()?)),
            (Resource::Referrers(name, digest), &Method::GET) => {
                Ok(Route::Referrers(name.parse()?, parse_digest(digest)?))
            }
            (resource, _) => Err(Refused::Method {
                allow: resource.allow(),
            }),
        }
    }

    /// What the log calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Route::Health => "health",
            Route::Version | Route::VersionOptions => "version",
            Route::Catalog => "catalog",
            Route::GetToken | Route::PostToken => "token",
            Route::GetBlob(..) => "get-blob",
            Route::DeleteBlob(..) => "delete-blob",
            Route::GetManifest(..) => "get-manifest",
            Route::PutManifest(..) => "put-manifest",
            Route::DeleteManifest(..) => "delete-manifest",
            Route::StartUpload(_) => "start-upload",
            Route::UploadStatus(..) => "upload-status",
            Route::AppendUpload(..) => "append-upload",
            Route::FinishUpload(..) => "finish-upload",
            Route::CancelUpload(..) => "cancel-upload",
            Route::Tags(_) => "tags",
            Route::Referrers(..) => "referrers",
        }
    }

    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Route::Health
            | Route::Version
            | Route::VersionOptions
            | Route::Catalog
            | Route::GetToken
            | Route::PostToken => None,
            Route::GetBlob(name, _)
            | Route::DeleteBlob(name, _)
            | Route::GetManifest(name, _)
            | Route::PutManifest(name, _)
            | Route::DeleteManifest(name, _)
            | Route::StartUpload(name)
            | Route::UploadStatus(name, _)
            | Route::AppendUpload(name, _)
            | Route::FinishUpload(name, _)
            | Route::CancelUpload(name, _)
            | Route::Tags(name)
            | Route::Referrers(name, _) => Some(name),
        }
    }

    /// The tag or digest that the path names.
    pub fn reference(&self) -> Option<Reference> {
        match self {
            Route::GetManifest(_, reference)
            | Route::PutManifest(_, reference)
            | Route::DeleteManifest(_, reference) => Some(reference.clone()),
            Route::GetBlob(_, digest)
            | Route::DeleteBlob(_, digest)
            | Route::Referrers(_, digest) => Some(Reference::Digest(digest.clone())),
            _ => None,
        }
    }
}

fn colons(text: &str) -> Cow<'_, str> {
    if text.contains('%') {
        Cow::Owned(text.replace("%3A", ":").replace("%3a", ":"))
    } else {
        Cow::Borrowed(text)
    }
}

fn parse_digest(text: &str) -> Result<Digest, Refused> {
    Ok(colons(text).parse()?)
}

fn pushed(text: &str) -> Result<Reference, Refused> {
    colons(text).parse().map_err(|error| match error {
        ReferenceInvalid::Tag(error) => Refused::Tag(error),
        ReferenceInvalid::Digest(error) => Refused::Digest(error),
    })
}

fn pulled(text: &str) -> Result<Reference, Refused> {
    pushed(text).map_err(|error| match error {
        Refused::Tag(error) => Refused::NoSuchTag(error),
        other => other,
    })
}

/// Opaque here; only what could not be one of ours is refused.
fn upload_id(text: &str) -> Result<String, Refused> {
    if text.len() <= UPLOAD_ID_MAX && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(Refused::UploadUnknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, prop_oneof, proptest};
    use proptest::strategy::{Just, Strategy};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(path: &str) -> Result<Route, Refused> {
        Route::parse(&Method::GET, path)
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn names_may_contain_the_words_of_the_api() {
        let digest: Digest = DIGEST.parse().unwrap();
        for odd in [
            "a",
            "a/b/c",
            "blobs",
            "tags/list",
            "blobs/uploads",
            "x/manifests",
            "v2/referrers",
        ] {
            let tags = format!("/v2/{odd}/tags/list");
            assert_eq!(get(&tags), Ok(Route::Tags(name(odd))), "{tags}");
            let blob = format!("/v2/{odd}/blobs/{DIGEST}");
            assert_eq!(
                get(&blob),
                Ok(Route::GetBlob(name(odd), digest.clone())),
                "{blob}"
            );
            let manifest = format!("/v2/{odd}/manifests/uploads");
            let tag = "uploads".parse().unwrap();
            assert_eq!(
                get(&manifest),
                Ok(Route::GetManifest(name(odd), tag)),
                "{manifest}"
            );
            for uploads in [
                format!("/v2/{odd}/blobs/uploads"),
                format!("/v2/{odd}/blobs/uploads/"),
            ] {
                let route = Route::parse(&Method::POST, &uploads);
                assert_eq!(route, Ok(Route::StartUpload(name(odd))), "{uploads}");
            }
            let upload = Route::parse(&Method::PATCH, &format!("/v2/{odd}/blobs/uploads/a.b-c"));
            assert_eq!(upload, Ok(Route::AppendUpload(name(odd), "a.b-c".into())));
        }
    }

    #[test]
    fn a_colon_may_be_escaped_and_nothing_else() {
        for colon in ["%3A", "%3a"] {
            let digest = DIGEST.replace(':', colon);
            for kind in ["blobs", "manifests", "referrers"] {
                assert!(
                    get(&format!("/v2/a/{kind}/{digest}")).is_ok(),
                    "{kind} {digest}"
                );
            }
        }
        for bad in [
            "/v2/a%2fb/tags/list",
            "/v2/%2e%2e/tags/list",
            "/v2//tags/list",
            "/v2/A/tags/list",
        ] {
            assert!(matches!(get(bad), Err(Refused::Name(_))), "{bad}");
        }
        assert!(matches!(
            get("/v2/a/manifests/%76"),
            Err(Refused::NoSuchTag(_))
        ));
    }

    #[test]
    fn a_bad_reference_is_told_apart_from_an_unknown_one() {
        let put =
            |reference: &str| Route::parse(&Method::PUT, &format!("/v2/a/manifests/{reference}"));
        assert!(matches!(put("sha256:zz"), Err(Refused::Digest(_))));
        assert!(matches!(put(".dot"), Err(Refused::Tag(_))));
        assert!(matches!(
            get("/v2/a/manifests/sha256:zz"),
            Err(Refused::Digest(_))
        ));
        assert!(matches!(get("/v2/a/blobs/v1"), Err(Refused::Digest(_))));
        let id = "x".repeat(UPLOAD_ID_MAX + 1);
        assert_eq!(
            get(&format!("/v2/a/blobs/uploads/{id}")),
            Err(Refused::UploadUnknown)
        );
    }

    #[test]
    fn paths_that_name_nothing_are_not_found() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/tags/list",
            "/v2/blobs/uploads/",
            "/v2/a/nothing/b",
            "/v2/a/tags/list/",
            "/v2/_oci/ext/discover",
            "/v2/../../etc/passwd",
            "*",
        ] {
            assert_eq!(get(path), Err(Refused::NotFound), "{path}");
        }
    }

    #[test]
    fn a_method_that_a_path_does_not_take_is_answered_with_those_it_takes() {
        for (method, path, allow) in [
            (
                Method::PUT,
                format!("/v2/a/blobs/{DIGEST}"),
                "GET, HEAD, DELETE",
            ),
            (Method::POST, "/v2/a/tags/list".into(), "GET, HEAD"),
            (Method::GET, "/v2/a/blobs/uploads/".into(), "POST"),
            (
                Method::PATCH,
                "/v2/a/manifests/v1".into(),
                "GET, HEAD, PUT, DELETE",
            ),
            (Method::DELETE, "/v2/".into(), "GET, HEAD, OPTIONS"),
            (Method::OPTIONS, "/v2/_catalog".into(), "GET, HEAD"),
        ] {
            assert_eq!(
                Route::parse(&method, &path),
                Err(Refused::Method { allow }),
                "{method} {path}"
            );
        }
        for path in ["/v2", "/v2/"] {
            assert_eq!(Route::parse(&Method::HEAD, path), Ok(Route::Version));
            assert_eq!(
                Route::parse(&Method::OPTIONS, path),
                Ok(Route::VersionOptions)
            );
        }
    }

    fn method() -> impl Strategy<Value = Method> {
        prop_oneof![
            Just(Method::GET),
            Just(Method::HEAD),
            Just(Method::POST),
            Just(Method::PUT),
            Just(Method::PATCH),
            Just(Method::DELETE),
            Just(Method::OPTIONS),
            Just(Method::TRACE),
        ]
    }

    proptest! {
        #[test]
        fn no_path_panics(method in method(), path in any::<String>()) {
            let _ = Route::parse(&method, &path);
        }

        #[test]
        fn no_path_of_our_words_panics(
            method in method(),
            words in prop::collection::vec("v2|a|blobs|uploads|manifests|tags|list|referrers|_catalog||%3A|é|sha256:ab", 0..7),
        ) {
            let _ = Route::parse(&method, &format!("/{}", words.join("/")));
        }

        #[test]
        fn names_and_references_round_trip(
            repository in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/(blobs|uploads|tags|list|[a-z0-9]{1,4})){0,4}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            let route = get(&format!("/v2/{repository}/manifests/{tag}")).unwrap();
            assert_eq!(route.repository().unwrap().as_str(), repository);
            assert_eq!(route.reference().unwrap().to_string(), tag);
        }
    }
}
