//! Header names that the `http` crate does not have, entity tags, and warnings.
//!
//! The entity tag of a blob or manifest is its digest in quotes.

use crate::oci::Digest;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::header;
use std::time::Duration;

pub const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
pub const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
pub const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
pub const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
pub const REQUEST: HeaderName = HeaderName::from_static("roadstead-request");
pub const REGION: HeaderName = HeaderName::from_static("roadstead-region");
pub const INDEX: HeaderName = HeaderName::from_static("roadstead-index");
pub const SOURCE: HeaderName = HeaderName::from_static("roadstead-source");
pub const STALENESS: HeaderName = HeaderName::from_static("roadstead-staleness-ms");

/// The spec's limit on the text of all warnings of one answer.
const WARNINGS_MAX: usize = 4096;

/// Text as a header value. What a header cannot carry becomes `?`, so that nothing that came from
/// outside can make it fail.
pub fn value(text: impl Into<String>) -> HeaderValue {
    let text = text.into();
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

/// The first header of that name, when it is text.
pub fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

pub fn etag(digest: &Digest) -> HeaderValue {
    value(format!("\"{digest}\""))
}

/// The tags of all `If-Match` or `If-None-Match` lines without their quotes; `*` as it is. A line
/// that cannot be read gives a tag that nothing has: a condition is never dropped.
pub fn entity_tags(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let mut tags = Vec::new();
    for line in headers.get_all(name) {
        let line = line.to_str().unwrap_or("?");
        tags.extend(line.split(',').map(|tag| bare(tag).to_owned()));
    }
    tags
}

fn bare(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}

/// Does the client have it already (RFC 9110, 13.1.2)?
pub fn is_not_modified(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    let digest = digest.to_string();
    entity_tags(headers, header::IF_NONE_MATCH)
        .iter()
        .any(|tag| tag == "*" || *tag == digest)
}

/// A range is to be sent only if the blob is still the one that the client knows (RFC 9110, 13.1.5).
pub fn allows_range(headers: &HeaderMap, digest: &Digest) -> bool {
    match headers.get(header::IF_RANGE) {
        None => true,
        Some(line) => line
            .to_str()
            .is_ok_and(|tag| bare(tag) == digest.to_string()),
    }
}

/// `Warning: 299 - "text"` for each, as many as fit the spec's limit.
pub fn add_warnings<'a>(headers: &mut HeaderMap, warnings: impl IntoIterator<Item = &'a str>) {
    let mut room = WARNINGS_MAX;
    for warning in warnings {
        let line = format!("299 - \"{}\"", quotable(warning));
        if line.len() > room {
            return;
        }
        room -= line.len();
        headers.append(header::WARNING, value(line));
    }
}

fn quotable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' | '\\' => '\'',
            c if c.is_ascii_graphic() || c == ' ' => c,
            _ => '?',
        })
        .collect()
}

/// Marks an answer that this node could not confirm to be the latest.
pub fn add_staleness(headers: &mut HeaderMap, staleness: Option<Duration>) {
    let Some(age) = staleness else { return };
    let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    headers.insert(STALENESS, HeaderValue::from(ms));
    let warning = format!(
        "this region cannot reach the leader: a push of the last {} s may be missing here",
        age.as_secs().saturating_add(1)
    );
    add_warnings(headers, [warning.as_str()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"x")
    }

    fn with(name: HeaderName, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name.clone(), line.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_known_entity_tag_is_found_however_it_is_written() {
        let digest = digest();
        for line in [
            format!("\"{digest}\""),
            format!("W/\"{digest}\""),
            digest.to_string(),
            "*".into(),
            format!("\"other\", \"{digest}\""),
        ] {
            assert!(
                is_not_modified(&with(header::IF_NONE_MATCH, &[&line]), &digest),
                "{line}"
            );
            let second = with(header::IF_NONE_MATCH, &["\"other\"", &line]);
            assert!(is_not_modified(&second, &digest), "{line}");
        }
        assert!(!is_not_modified(&HeaderMap::new(), &digest));
        assert!(!is_not_modified(
            &with(header::IF_NONE_MATCH, &["\"other\""]),
            &digest
        ));
    }

    #[test]
    fn a_condition_that_cannot_be_read_is_not_dropped() {
        assert_eq!(
            entity_tags(&with(header::IF_MATCH, &[""]), header::IF_MATCH),
            [""]
        );
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(entity_tags(&headers, header::IF_MATCH), ["?"]);
        assert!(entity_tags(&HeaderMap::new(), header::IF_MATCH).is_empty());
    }

    #[test]
    fn a_range_of_another_blob_is_not_sent() {
        assert!(allows_range(&HeaderMap::new(), &digest()));
        assert!(allows_range(
            &with(header::IF_RANGE, &[&format!("\"{}\"", digest())]),
            &digest()
        ));
        assert!(!allows_range(
            &with(header::IF_RANGE, &["\"sha256:0\""]),
            &digest()
        ));
        assert!(!allows_range(
            &with(header::IF_RANGE, &["Tue, 24 Nov 2026 00:00:00 GMT"]),
            &digest()
        ));
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        let mut headers = HeaderMap::new();
        add_warnings(&mut headers, ["say \"x\"\r\né", "two"]);
        let lines: Vec<_> = headers.get_all(header::WARNING).iter().collect();
        assert_eq!(lines, ["299 - \"say 'x'???\"", "299 - \"two\""]);
        let long = "x".repeat(3000);
        let mut headers = HeaderMap::new();
        add_warnings(&mut headers, [long.as_str(), long.as_str()]);
        assert_eq!(headers.get_all(header::WARNING).iter().count(), 1);
    }

    #[test]
    fn only_an_unconfirmed_read_is_marked() {
        let mut headers = HeaderMap::new();
        add_staleness(&mut headers, None);
        assert!(headers.is_empty());
        add_staleness(&mut headers, Some(Duration::from_millis(1500)));
        assert_eq!(headers[STALENESS], "1500");
        assert!(
            headers[header::WARNING]
                .to_str()
                .unwrap()
                .starts_with("299 - \"")
        );
    }
}
