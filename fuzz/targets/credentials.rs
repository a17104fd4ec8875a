//! What says who somebody is and what they may do, a line each: Authorization headers, tokens, scopes,
//! grants, patterns, names. What is read is written as it was, and no scope gets wider.

#![no_main]

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use roadstead::access::{AccountName, Grant, Pattern, Rights, Scope, parse_scopes};
use roadstead::login::{Shown, fuzzing};

fn line(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let headers: HeaderMap = [(AUTHORIZATION, value)].into_iter().collect();
        if let Ok(shown) = Shown::in_headers(&headers) {
            let _ = format!("{shown:?}");
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(!fuzzing::is_token(text), "nobody has signed it");
    fuzzing::claims_of_ci(text);
    if let Ok(grant) = text.parse::<Grant>() {
        let again: Grant = grant.to_string().parse().unwrap();
        assert_eq!(
            (&again.pattern, again.rights),
            (&grant.pattern, grant.rights)
        );
        assert!(grant.pattern.covers(&again.pattern));
    }
    if let Ok(pattern) = text.parse::<Pattern>() {
        assert_eq!(pattern.to_string(), text);
        assert!(Pattern::All.covers(&pattern));
    }
    if let Ok(name) = text.parse::<AccountName>() {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains([':', '/', '"', ' ', '\n']));
    }
    for scope in parse_scopes(std::iter::once(text)) {
        if let Some(limited) = scope.clone().limited(Rights::PULL) {
            assert_eq!(limited.rights(), Rights::PULL);
        }
        let actions = scope.actions.join(",");
        let again = Scope::parse(&format!("{}:{}:{actions}", scope.kind, scope.name));
        assert_eq!(again, Some(scope));
    }
}

fuzz_target!(|bytes: &[u8]| {
    bytes.split(|b| *b == b'\n').for_each(line);
});
