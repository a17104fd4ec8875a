//! Query strings: reading them, and the paging that tags and catalog share.
//!
//! A `+` is a plus sign here, never a space: media types contain plus signs that some clients do
//! not escape, and nothing that is asked for contains a space.

use crate::oci::Digest;
use std::borrow::Cow;

/// The most entries of one answer; a client that asks for more, or for all, gets a `Link` to the
/// rest.
const PAGE_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug)]
pub struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub fn new(query: Option<&'a str>) -> Query<'a> {
        Query(query.unwrap_or_default())
    }

    /// Every value of a key, in order.
    pub fn all(self, key: &str) -> impl Iterator<Item = Cow<'a, str>> {
        self.0.split('&').filter_map(move |pair| {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(found) == key).then(|| decode(value))
        })
    }

    pub fn first(self, key: &str) -> Option<Cow<'a, str>> {
        self.all(key).next()
    }
}

/// What is not well escaped stays as it is, for the parser of the value to refuse.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = match bytes.get(at..at + 3) {
            Some(&[b'%', high, low]) => hex_digit(high).zip(hex_digit(low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            decoded.push(high << 4 | low);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    String::from_utf8(decoded).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// All but the unreserved characters of RFC 3986 escaped.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("n={0:?} is not a number of entries; give a number from 0 up")]
pub struct PageInvalid(String);

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub limit: usize,
    /// Exclusive; need not exist.
    pub after: Option<String>,
}

impl Page {
    pub fn parse(query: Query<'_>) -> Result<Page, PageInvalid> {
        let limit = match query.first("n") {
            None => PAGE_MAX,
            Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                n.parse().map_or(PAGE_MAX, |n: usize| n.min(PAGE_MAX))
            }
            Some(n) => return Err(PageInvalid(n.chars().take(40).collect())),
        };
        let after = query
            .first("last")
            .filter(|last| !last.is_empty())
            .map(Cow::into_owned);
        Ok(Page { limit, after })
    }

    /// `Link` to the page after the one that ends with `last`. Relative to the host, so that no
    /// proxy can make it wrong.
    pub fn next(&self, path: &str, last: &str) -> String {
        format!(
            "<{path}?n={}&last={}>; rel=\"next\"",
            self.limit,
            encode(last)
        )
    }
}

/// `Link` to the referrers after `last`, with the same filter.
pub fn next_referrers(path: &str, wanted: &[String], last: &Digest) -> String {
    let filters = wanted
        .iter()
        .map(|wanted| format!("artifactType={}&", encode(wanted)));
    let filters: String = filters.collect();
    format!(
        "<{path}?{filters}last={}>; rel=\"next\"",
        encode(&last.to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn values_are_decoded_and_plus_signs_stay() {
        let query = Query::new(Some("a=1&digest=sha256%3Aab&t=x%2Fy+json&t=%zz&empty&t"));
        assert_eq!(query.first("digest").unwrap(), "sha256:ab");
        assert_eq!(query.all("t").collect::<Vec<_>>(), ["x/y+json", "%zz", ""]);
        assert_eq!(query.first("empty").unwrap(), "");
        assert!(query.first("none").is_none());
        assert!(Query::new(None).first("a").is_none());
    }

    #[test]
    fn pages_are_bounded_and_bad_numbers_refused() {
        let page = |query| Page::parse(Query::new(Some(query)));
        assert_eq!(
            page("").unwrap(),
            Page {
                limit: PAGE_MAX,
                after: None
            }
        );
        assert_eq!(page("n=0").unwrap().limit, 0);
        assert_eq!(
            page("n=2&last=v%2F1").unwrap(),
            Page {
                limit: 2,
                after: Some("v/1".into())
            }
        );
        for huge in ["n=10001", "n=99999999999999999999999999"] {
            assert_eq!(page(huge).unwrap().limit, PAGE_MAX);
        }
        for bad in ["n=-1", "n=ten", "n=", "n=1.5", "n=+1"] {
            assert!(page(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_link_to_the_next_page_is_escaped_and_without_a_host() {
        let page = Page {
            limit: 2,
            after: None,
        };
        assert_eq!(
            page.next("/v2/a/tags/list", "v1.0"),
            "</v2/a/tags/list?n=2&last=v1.0>; rel=\"next\""
        );
        assert_eq!(
            page.next("/v2/_catalog", "a/b"),
            "</v2/_catalog?n=2&last=a%2Fb>; rel=\"next\""
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in any::<String>()) {
            let query = format!("x={}", encode(&text));
            assert_eq!(Query::new(Some(&query)).first("x").unwrap(), text);
        }

        #[test]
        fn no_query_panics(text in any::<String>()) {
            let _ = Page::parse(Query::new(Some(&text)));
        }
    }
}
