//! One function per endpoint of the distribution spec; each has its repository from the door.

use super::auth::Asking;
use super::body::Incoming;
use super::error::Failure;
use super::headers::{self, etag, value};
use super::parts;
use super::query::{Page, Query, next_referrers};
use super::range::{parse_chunk, parse_ranges, uploaded};
use crate::access::Principal;
use crate::budget::Budget;
use crate::oci::{Algorithm, Digest, OCI_INDEX, Reference, RepositoryName, Tag};
use crate::registry::{
    Action, Chunk, Precondition, PutManifest, Registry, Repository, Source, Step, resolve_all,
};
use crate::topology::Client;
use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use std::borrow::Cow;

pub(super) type Answer = Result<Response, Failure>;

const MANIFEST_MAX: usize = 4 << 20;
const TAGS_MAX: usize = 100;

pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    if status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

pub(super) fn with(mut response: Response, name: HeaderName, text: impl Into<String>) -> Response {
    response.headers_mut().insert(name, value(text));
    response
}

pub(super) fn json_answer(body: &Value) -> Response {
    with(
        Response::new(Body::from(body.to_string())),
        header::CONTENT_TYPE,
        "application/json",
    )
}

fn query(request: &Parts) -> Query<'_> {
    Query::new(request.uri.query())
}

pub(super) fn health(registry: &Registry, request: &Parts) -> Answer {
    let purpose = query(request).first("for");
    let is_well = match purpose.as_deref() {
        None | Some("pulls") => registry.takes_pulls(),
        Some("pushes") => registry.takes_pushes(),
        Some(_) => {
            let told = "for= takes pulls or pushes";
            return Err(Failure::bad_request("UNSUPPORTED", told));
        }
    };
    Ok(empty(if is_well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }))
}

pub(super) fn precondition(headers: &HeaderMap) -> Precondition {
    Precondition {
        if_match: headers::entity_tags(headers, header::IF_MATCH),
        if_none_match: headers::entity_tags(headers, header::IF_NONE_MATCH),
    }
}

pub(super) async fn catalog(registry: &Registry, asking: &Asking, request: &Parts) -> Answer {
    let page = Page::parse(query(request))?;
    let limit = page.limit.saturating_add(1);
    let read = registry
        .repositories(&asking.principal, page.after.as_deref(), limit)
        .await?;
    let mut names = read.value;
    let more = names.len() > page.limit && page.limit > 0;
    names.truncate(page.limit);
    let mut response = json_answer(&json!({"repositories": names}));
    if let (true, Some(last)) = (more, names.last()) {
        response = with(response, header::LINK, page.next("/v2/_catalog", last));
    }
    headers::add_staleness(response.headers_mut(), read.staleness);
    Ok(response)
}

pub(super) async fn tags(repository: Repository, request: &Parts) -> Answer {
    let page = Page::parse(query(request))?;
    let read = repository
        .tags(page.after.as_deref(), page.limit, Budget::default())
        .await?;
    let (tags, more) = read.value;
    let mut response = json_answer(&json!({"name": repository.name().as_str(), "tags": tags}));
    if let (true, Some(last)) = (more, tags.last()) {
        let path = format!("/v2/{}/tags/list", repository.name());
        response = with(response, header::LINK, page.next(&path, last));
    }
    headers::add_staleness(response.headers_mut(), read.staleness);
    Ok(response)
}

pub(super) async fn referrers(repository: Repository, digest: &Digest, request: &Parts) -> Answer {
    let asked = query(request);
    let wanted: Vec<String> = asked.all("artifactType").map(Cow::into_owned).collect();
    let after = asked.first("last").map(|last| last.parse::<Digest>());
    let after = after.transpose()?;
    let read = repository
        .referrers(digest, &wanted, after.as_ref())
        .await?;
    let (page, last) = read.value;
    let shown = page.iter();
    let manifests: Vec<Value> = shown
        .map(|referrer| {
            let mut entry = json!({
                "mediaType": referrer.media_type,
                "digest": referrer.digest.to_string(),
                "size": referrer.size,
            });
            if !referrer.artifact_type.is_empty() {
                entry["artifactType"] = json!(referrer.artifact_type);
            }
            if let Ok(annotations) = serde_json::from_str::<Value>(&referrer.annotations_json) {
                entry["annotations"] = annotations;
            }
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let mut response = with(json_answer(&index), header::CONTENT_TYPE, OCI_INDEX);
    if !wanted.is_empty() {
        response = with(response, headers::OCI_FILTERS_APPLIED, "artifactType");
    }
    if let Some(last) = last {
        let path = format!("/v2/{}/referrers/{digest}", repository.name());
        response = with(
            response,
            header::LINK,
            next_referrers(&path, &wanted, &last),
        );
    }
    headers::add_staleness(response.headers_mut(), read.staleness);
    Ok(response)
}

pub(super) async fn get_manifest(
    repository: Repository,
    reference: &Reference,
    request: &Parts,
) -> Answer {
    let read = repository.manifest(reference, Budget::default()).await?;
    let manifest = read.value;
    let mut response = if headers::is_not_modified(&request.headers, &manifest.digest) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let length = manifest.bytes.len().to_string();
        let response = with(
            Response::new(Body::from(manifest.bytes)),
            header::CONTENT_TYPE,
            manifest.media_type,
        );
        with(response, header::CONTENT_LENGTH, length)
    };
    response
        .headers_mut()
        .insert(header::ETAG, etag(&manifest.digest));
    headers::add_staleness(response.headers_mut(), read.staleness);
    Ok(with(
        response,
        headers::CONTENT_DIGEST,
        manifest.digest.to_string(),
    ))
}

pub(super) async fn put_manifest(
    repository: Repository,
    reference: &Reference,
    request: &Parts,
    body: Incoming,
) -> Answer {
    let tags: Vec<Tag> = query(request)
        .all("tag")
        .map(|tag| tag.parse())
        .collect::<Result<_, _>>()?;
    if tags.len() > TAGS_MAX {
        let message = format!("{} tags, at most {TAGS_MAX} are taken at once", tags.len());
        return Err(Failure::new(
            StatusCode::URI_TOO_LONG,
            "UNSUPPORTED",
            message,
        ));
    }
    if let (Reference::Tag(tag), [_, ..]) = (reference, tags.as_slice()) {
        let message =
            format!("?tag= goes with a push by digest, and this one names tag {tag} already");
        return Err(Failure::bad_request("TAG_INVALID", message));
    }
    let content_type = headers::text(&request.headers, header::CONTENT_TYPE).map(str::to_owned);
    let precondition = precondition(&request.headers);
    let (bytes, _turn, budget) = body.collect(MANIFEST_MAX, Budget::default()).await?;
    let asked = !tags.is_empty();
    let put = PutManifest {
        reference: reference.clone(),
        tags,
        content_type,
        bytes,
        precondition,
    };
    let done = repository.put_manifest(put, budget).await?;
    let location = format!("/v2/{}/manifests/{}", repository.name(), done.digest);
    let mut response = with(empty(StatusCode::CREATED), header::LOCATION, location);
    response = with(response, headers::CONTENT_DIGEST, done.digest.to_string());
    if let Some(subject) = done.subject {
        response = with(response, headers::OCI_SUBJECT, subject.to_string());
    }
    if asked {
        let tags: Vec<&str> = done.tags.iter().map(Tag::as_str).collect();
        response = with(response, headers::OCI_TAG, tags.join(", "));
    }
    headers::add_warnings(
        response.headers_mut(),
        done.warnings.iter().map(String::as_str),
    );
    Ok(response)
}

pub(super) async fn get_blob(repository: Repository, digest: &Digest, request: &Parts) -> Answer {
    let describe = |response: Response, size: u64| {
        let mut response = with(response, headers::CONTENT_DIGEST, digest.to_string());
        response.headers_mut().insert(header::ETAG, etag(digest));
        response = with(response, header::ACCEPT_RANGES, "bytes");
        response = with(response, header::CONTENT_TYPE, "application/octet-stream");
        with(response, header::CONTENT_LENGTH, size.to_string())
    };
    if headers::is_not_modified(&request.headers, digest) {
        repository.stat_blob(digest, Budget::default()).await?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(header::ETAG, etag(digest));
        return Ok(with(response, headers::CONTENT_DIGEST, digest.to_string()));
    }
    if request.method == Method::HEAD {
        let stat = repository.stat_blob(digest, Budget::default()).await?;
        return Ok(describe(Response::new(Body::empty()), stat.size));
    }
    let asked = headers::text(&request.headers, header::RANGE).and_then(parse_ranges);
    let asked = asked.filter(|_| headers::allows_range(&request.headers, digest));
    let asked = match asked.as_deref() {
        None => None,
        Some([range]) => Some(*range),
        Some(several) => {
            let size = repository.stat_blob(digest, Budget::default()).await?.size;
            match resolve_all(several, size)? {
                None => None,
                Some(ranges) => {
                    let parts = parts::answer(repository, digest, ranges, size).await?;
                    let mut parts = with(parts, headers::CONTENT_DIGEST, digest.to_string());
                    parts.headers_mut().insert(header::ETAG, etag(digest));
                    return Ok(parts);
                }
            }
        }
    };
    let blob = repository
        .open_blob(digest, asked, Budget::default())
        .await?;
    let length = blob.range.end - blob.range.start;
    let mut response = describe(Response::new(Body::from_stream(blob.body)), length);
    if asked.is_some() && blob.size > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!(
            "bytes {}-{}/{}",
            blob.range.start,
            blob.range.end - 1,
            blob.size
        );
        response = with(response, header::CONTENT_RANGE, range);
    }
    let source = match blob.source {
        Source::Local => "local".to_owned(),
        Source::Peer(region) => format!("peer:{region}"),
    };
    Ok(with(response, headers::SOURCE, source))
}

pub(super) fn upload_answer(
    status: StatusCode,
    name: &RepositoryName,
    id: &str,
    length: u64,
) -> Response {
    let response = with(
        empty(status),
        header::LOCATION,
        format!("/v2/{name}/blobs/uploads/{id}"),
    );
    with(
        with(response, header::RANGE, uploaded(length)),
        headers::UPLOAD_UUID,
        id,
    )
}

fn blob_created(name: &RepositoryName, digest: &Digest) -> Response {
    let response = with(
        empty(StatusCode::CREATED),
        header::LOCATION,
        format!("/v2/{name}/blobs/{digest}"),
    );
    with(response, headers::CONTENT_DIGEST, digest.to_string())
}

pub(super) async fn start_upload(
    registry: &Registry,
    principal: &Principal,
    repository: Repository,
    request: &Parts,
    body: Incoming,
) -> Answer {
    let name = repository.name().clone();
    let asked = query(request);
    if let Some(digest) = asked
        .first("mount")
        .and_then(|mount| mount.parse::<Digest>().ok())
    {
        let named = asked.first("from");
        let from = named
            .as_ref()
            .and_then(|from| from.parse::<RepositoryName>().ok());
        let from = from.and_then(|from| registry.authorize(principal, Action::Pull, &from).ok());
        // One that is no name, or that the caller may not pull from, is not any repository.
        let is_source_known = named.is_none() || from.is_some();
        if is_source_known && repository.mount_blob(&digest, from.as_ref()).await? {
            return Ok(blob_created(&name, &digest));
        }
    }
    let digest = asked
        .first("digest")
        .map(|digest| digest.parse::<Digest>())
        .transpose()?;
    let algorithm = asked
        .first("digest-algorithm")
        .map(|text| text.parse::<Algorithm>())
        .transpose()?;
    let client = request.extensions.get().map(|Client(address)| address.ip());
    let Some(digest) = digest else {
        let id = repository.start_upload(algorithm, client).await?;
        return Ok(upload_answer(StatusCode::ACCEPTED, &name, &id, 0));
    };
    let mut bytes = Box::pin(body.stream().peekable());
    // The client only names what it is about to send.
    if bytes.as_mut().peek().await.is_none() && digest != Digest::of(digest.algorithm(), b"") {
        let id = repository
            .start_upload(Some(digest.algorithm()), client)
            .await?;
        return Ok(upload_answer(StatusCode::ACCEPTED, &name, &id, 0));
    }
    repository.put_blob(&digest, bytes).await?;
    Ok(blob_created(&name, &digest))
}

/// What the headers of a PATCH, or of a closing PUT, say of its bytes.
pub(super) fn chunk(request: &Parts) -> Result<Chunk, Failure> {
    let Some(text) = headers::text(&request.headers, header::CONTENT_RANGE) else {
        return Ok(Chunk::default());
    };
    let chunk = parse_chunk(text).ok_or_else(|| {
        let message = format!("Content-Range {text:?} is not <first>-<last>");
        Failure::bad_request("BLOB_UPLOAD_INVALID", message)
    })?;
    let declared = headers::text(&request.headers, header::CONTENT_LENGTH);
    match declared.filter(|declared| declared.parse() != Ok(chunk.length)) {
        None => Ok(Chunk {
            at: Some(chunk.start),
            length: Some(chunk.length),
        }),
        Some(has) => {
            let message = format!(
                "Content-Range says {} bytes, Content-Length {has}",
                chunk.length
            );
            Err(Failure::bad_request("SIZE_INVALID", message))
        }
    }
}

pub(super) async fn step(repository: &Repository, id: &str, step: Step) -> Result<u64, Failure> {
    let done = repository.upload_step(id, step, Budget::default()).await;
    done.map_err(|error| {
        let location = format!("/v2/{}/blobs/uploads/{id}", repository.name());
        Failure::from(error).with(header::LOCATION, value(location))
    })
}

pub(super) async fn finish_upload(
    repository: Repository,
    id: &str,
    request: &Parts,
    body: Incoming,
) -> Answer {
    let missing = || Failure::bad_request("DIGEST_INVALID", "the closing PUT needs ?digest=");
    let digest: Digest = query(request)
        .first("digest")
        .ok_or_else(missing)?
        .parse()?;
    let finish = Step::Finish(chunk(request)?, body.stream(), digest.clone());
    step(&repository, id, finish).await?;
    Ok(blob_created(repository.name(), &digest))
}
