//! Query strings, and the paging of tags and catalog: the link to a next page asks for that page.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roadstead::http::fuzzing::{Page, Query, next_referrers};
use roadstead::oci::{Algorithm, Digest};
use std::borrow::Cow;

/// The query of a link.
fn asked(link: &str) -> String {
    assert!(
        link.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
        "{link}"
    );
    let target = link.strip_prefix("</v2/a/tags/list?").unwrap();
    target.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
}

fuzz_target!(|text: &str| {
    let query = Query::new(Some(text));
    for key in [
        "n",
        "last",
        "digest",
        "mount",
        "from",
        "tag",
        "artifactType",
        "digest-algorithm",
    ] {
        let all: Vec<_> = query.all(key).collect();
        assert_eq!(query.first(key), all.first().cloned());
        assert!(all.len() <= text.split('&').count());
        for value in all {
            assert!(value.len() <= text.len(), "decoding makes nothing longer");
        }
    }
    let page = match Page::parse(query) {
        Ok(page) => page,
        Err(error) => {
            assert!(error.to_string().len() < 1024);
            return;
        }
    };
    assert!(page.limit <= 10_000);
    assert_ne!(page.after.as_deref(), Some(""));
    // What the last entry of a page could be called, however odd.
    let last = page.after.clone().unwrap_or_else(|| "v1".to_owned());
    let link = page.next("/v2/a/tags/list", &last);
    let target = asked(&link);
    let next = Page::parse(Query::new(Some(&target))).unwrap();
    assert_eq!((next.limit, next.after), (page.limit, Some(last)));
    let wanted: Vec<String> = query.all("artifactType").map(Cow::into_owned).collect();
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let next = asked(&next_referrers("/v2/a/tags/list", &wanted, &digest));
    let next = Query::new(Some(&next));
    assert_eq!(next.first("last").as_deref(), Some(&*digest.to_string()));
    assert!(next.all("artifactType").eq(wanted));
});
