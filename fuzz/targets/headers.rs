//! Request headers that are parsed here: `Range`, `Content-Range`, and conditions, a line each. The
//! first line is the size of the blob.

#![no_main]

use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use roadstead::http::fuzzing::{
    add_warnings, allows_range, entity_tags, etag, is_not_modified, parse_chunk, parse_ranges,
};
use roadstead::oci::{Algorithm, Digest};
use roadstead::registry::{Error, RangeSpec, resolve_all};

fn ranges(text: &str, size: u64) {
    let Some(specs) = parse_ranges(text) else {
        return;
    };
    assert!((1..=1024).contains(&specs.len()));
    let spelled: Vec<String> = specs
        .iter()
        .map(|spec| match spec {
            RangeSpec::FromTo(first, last) => format!("{first}-{last}"),
            RangeSpec::From(first) => format!("{first}-"),
            RangeSpec::Last(count) => format!("-{count}"),
        })
        .collect();
    assert_eq!(
        parse_ranges(&format!("bytes={}", spelled.join(","))).as_ref(),
        Some(&specs)
    );
    match resolve_all(&specs, size) {
        Ok(Some(found)) => {
            assert!(!found.is_empty() && found.len() <= specs.len());
            assert!(
                found
                    .iter()
                    .all(|range| range.start < range.end && range.end <= size)
            );
            let sent: u128 = found
                .iter()
                .map(|range| u128::from(range.end - range.start))
                .sum();
            assert!(sent <= u128::from(size), "no more than the blob is sent");
        }
        Ok(None) => {}
        Err(Error::RangeNotSatisfiable { size: told }) => assert_eq!(told, size),
        Err(error) => panic!("{error}"),
    }
}

fn conditions(lines: &[&[u8]]) {
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let mut headers = HeaderMap::new();
    for line in lines {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::IF_NONE_MATCH, value.clone());
            headers.insert(header::IF_RANGE, value);
        }
    }
    let given = headers.get_all(header::IF_NONE_MATCH).iter().count();
    let tags = entity_tags(&headers, header::IF_NONE_MATCH);
    assert!(tags.len() >= given, "a condition is never dropped");
    let is_named = tags
        .iter()
        .any(|tag| *tag == "*" || *tag == digest.to_string());
    assert_eq!(is_not_modified(&headers, &digest), is_named);
    if allows_range(&headers, &digest) && given > 0 {
        let line = headers[header::IF_RANGE].to_str().unwrap();
        assert!(line.contains(&digest.to_string()));
    }
    headers.append(header::IF_NONE_MATCH, etag(&digest));
    assert!(is_not_modified(&headers, &digest), "whatever else is named");
}

fn warnings(lines: &[&[u8]]) {
    let texts: Vec<_> = lines
        .iter()
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    let mut headers = HeaderMap::new();
    add_warnings(&mut headers, texts.iter().map(|text| &**text));
    let sent: Vec<_> = headers.get_all(header::WARNING).iter().collect();
    assert!(
        sent.iter()
            .all(|line| line.to_str().unwrap().starts_with("299 - \""))
    );
    assert!(sent.iter().map(|line| line.len()).sum::<usize>() <= 4096);
}

fuzz_target!(|bytes: &[u8]| {
    let mut lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    let size = std::str::from_utf8(lines.remove(0))
        .ok()
        .and_then(|line| line.parse().ok())
        .unwrap_or(100);
    for text in lines
        .iter()
        .filter_map(|line| std::str::from_utf8(line).ok())
    {
        ranges(text, size);
        if let Some(chunk) = parse_chunk(text) {
            assert!(chunk.length > 0);
            let last = chunk.start + (chunk.length - 1);
            let start = chunk.start;
            assert_eq!(parse_chunk(&format!("{start}-{last}")), Some(chunk));
            assert_eq!(parse_chunk(&format!("bytes {start}-{last}/*")), Some(chunk));
        }
    }
    conditions(&lines);
    warnings(&lines);
});
