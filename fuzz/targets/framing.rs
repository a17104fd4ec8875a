//! Bytes of an HTTP/1.1 connection: in whatever pieces they come they are read alike, and a request
//! that is let through ends where the parser behind finds its end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roadstead::server::fuzzing::Framing;

/// How many bytes are passed on, and whether all were taken; then where that leads.
fn read(bytes: &[u8], size: usize) -> (usize, bool, bool, bool) {
    let mut framing = Framing::new();
    let mut passed = 0;
    for piece in bytes.chunks(size) {
        match framing.take(piece) {
            Ok(()) => passed += piece.len(),
            Err(kept) => return (passed + kept, false, false, false),
        }
    }
    (passed, true, framing.is_in_head(), framing.is_in_chunks())
}

/// The length of the first head, when it is let through, and the framing after it.
fn first_head(bytes: &[u8]) -> Option<(usize, Framing)> {
    let mut framing = Framing::new();
    let mut is_in_head = false;
    for (at, byte) in bytes.iter().enumerate() {
        framing.take(&[*byte]).ok()?;
        // The end of an empty line before a request is in no head either.
        if is_in_head && !framing.is_in_head() && bytes[..at].iter().any(|b| !b"\r\n".contains(b)) {
            return Some((at + 1, framing));
        }
        is_in_head = framing.is_in_head();
    }
    None
}

fn is_named(header: &httparse::Header, name: &str) -> bool {
    header.name.eq_ignore_ascii_case(name)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, usize::MAX);
    assert!(whole.0 <= bytes.len());
    for size in [1, 3, 7] {
        assert_eq!(read(bytes, size), whole, "in pieces of {size}");
    }
    if bytes.starts_with(b"PRI * HTTP/2.0\r\n") {
        return;
    }
    let Some((length, mut framing)) = first_head(bytes) else {
        return;
    };
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    // What it refuses it answers with an error, and ends the connection.
    let Ok(parsed) = request.parse(bytes) else {
        return;
    };
    assert_eq!(parsed, httparse::Status::Complete(length));
    let all = |name| {
        request
            .headers
            .iter()
            .filter(move |header| is_named(header, name))
    };
    assert!(all("host").count() <= 1);
    assert!(all("content-length").count() + all("transfer-encoding").count() <= 1);
    let is_chunked = all("transfer-encoding").count() > 0;
    assert_eq!(framing.is_in_chunks(), is_chunked);
    let body = all("content-length").next().map(|header| {
        let value = std::str::from_utf8(header.value).unwrap().trim();
        value.parse::<u64>().unwrap()
    });
    if !is_chunked && body.unwrap_or(0) < 10_000 {
        let body = vec![b'x'; body.unwrap_or(0) as usize];
        assert_eq!(framing.take(&body), Ok(()));
        assert!(!framing.is_in_head());
        assert_eq!(framing.take(b"G"), Ok(()));
        assert!(framing.is_in_head(), "the next request begins there");
    }
});
