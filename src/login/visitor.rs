//! From where a request comes, and under which name it came to us: directly, or through a proxy that
//! is trusted to say so.
//!
//! What must stay true: what a client writes into forwarded headers counts for nothing, unless its
//! connection comes from a trusted proxy.

use crate::topology::Client;
use crate::topology::Secure;
use http::HeaderMap;
use http::request::Parts;
use std::net::IpAddr;
use std::sync::Arc;

const AUTHORITY_MAX: usize = 255;

/// What this node knows of what stands before it.
#[derive(Clone)]
pub struct Front {
    /// As clients may call it, without a slash at the end; empty: as they do.
    pub external_urls: Vec<String>,
    pub is_proxy: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    pub client: Option<IpAddr>,
    /// `https://registry.example.com`: how the client calls this registry.
    pub origin: Option<String>,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A host and maybe a port, and nothing that could be read otherwise in a URL.
fn is_authority(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
    (1..=AUTHORITY_MAX).contains(&text.len()) && text.bytes().all(fits)
}

impl Front {
    pub fn visitor(&self, request: &Parts) -> Visitor {
        let direct = request.extensions.get().map(|Client(address)| address.ip());
        let is_behind_proxy = direct.is_some_and(|ip| (self.is_proxy)(ip.to_canonical()));
        let forwarded = |name| text(&request.headers, name).filter(|_| is_behind_proxy);
        Visitor {
            client: match forwarded("x-forwarded-for") {
                Some(list) => self.nearest_stranger(list).or(direct),
                None => direct,
            },
            origin: self.origin(
                request,
                forwarded("x-forwarded-host"),
                forwarded("x-forwarded-proto"),
            ),
        }
    }

    /// The last address that is not one of our own proxies: those before it anyone may have written.
    fn nearest_stranger(&self, list: &str) -> Option<IpAddr> {
        for item in list.rsplit(',') {
            let address: IpAddr = item.trim().parse().ok()?;
            if !(self.is_proxy)(address.to_canonical()) {
                return Some(address);
            }
        }
        None
    }

    fn origin(&self, request: &Parts, host: Option<&str>, scheme: Option<&str>) -> Option<String> {
        let own = request.uri.authority().map(http::uri::Authority::as_str);
        let called = host.or(text(&request.headers, "host")).or(own);
        let called = called.filter(|called| is_authority(called));
        if !self.external_urls.is_empty() {
            let fits = |url: &&String| {
                let (_, authority) = url.split_once("://").unwrap_or(("", url));
                called.is_some_and(|called| called.eq_ignore_ascii_case(authority))
            };
            let named = self.external_urls.iter().find(fits);
            return named.or(self.external_urls.first()).cloned();
        }
        let scheme = match scheme {
            Some("https") => "https",
            Some("http") => "http",
            _ if request.extensions.get::<Secure>().is_some() => "https",
            _ => "http",
        };
        Some(format!("{scheme}://{}", called?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn visit(front: &Front, from: &str, headers: &[(&str, &str)]) -> Visitor {
        let mut request = Request::builder().uri("/v2/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let address = format!("{from}:1").parse().unwrap();
        let request = request.extension(Client(address)).body(()).unwrap();
        front.visitor(&request.into_parts().0)
    }

    fn front(external: &[&str]) -> Front {
        Front {
            external_urls: external.iter().map(|url| (*url).to_owned()).collect(),
            is_proxy: Arc::new(|ip| ip == "10.0.0.1".parse::<IpAddr>().unwrap()),
        }
    }

    #[test]
    fn only_a_trusted_proxy_says_who_calls_and_how() {
        let forwarded = [
            ("host", "inner:5000"),
            ("x-forwarded-for", "203.0.113.9, 198.51.100.7, 10.0.0.1"),
            ("x-forwarded-host", "registry.example.com"),
            ("x-forwarded-proto", "https"),
        ];
        let through = visit(&front(&[]), "10.0.0.1", &forwarded);
        assert_eq!(
            through.origin.as_deref(),
            Some("https://registry.example.com")
        );
        assert_eq!(through.client, Some("198.51.100.7".parse().unwrap()));
        let by_itself = visit(&front(&[]), "198.51.100.7", &forwarded);
        assert_eq!(by_itself.origin.as_deref(), Some("http://inner:5000"));
        assert_eq!(by_itself.client, Some("198.51.100.7".parse().unwrap()));
    }

    #[test]
    fn an_external_url_that_the_client_used_is_kept_and_no_inner_one_is_shown() {
        let front = front(&["https://a.example.com", "https://b.example.com:8443"]);
        let origin = |host: &str| {
            visit(&front, "192.0.2.1", &[("host", host)])
                .origin
                .unwrap()
        };
        assert_eq!(origin("B.example.com:8443"), "https://b.example.com:8443");
        assert_eq!(origin("10.1.2.3:5000"), "https://a.example.com");
        assert_eq!(
            visit(&front, "192.0.2.1", &[]).origin.unwrap(),
            "https://a.example.com"
        );
    }

    #[test]
    fn a_host_that_is_none_is_not_repeated() {
        for bad in ["a\"b", "a/b", "a b", "user@host", ""] {
            assert_eq!(
                visit(&front(&[]), "192.0.2.1", &[("host", bad)]).origin,
                None,
                "{bad}"
            );
        }
    }
}
