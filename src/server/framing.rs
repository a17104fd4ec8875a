//! Where each HTTP/1.1 request of a connection ends, read from its bytes before hyper sees them.
//!
//! hyper forgives what a proxy before it may read otherwise: a line that ends without CR, a second
//! `Content-Length`, `Transfer-Encoding` beside it. Whoever makes the two disagree on where a
//! request ends can hide another one in it (request smuggling). So only what has one reading gets
//! through, and the framing of what does is the one that hyper finds.

/// Longer than any head that hyper takes, and than its limit on chunk extensions.
const LINE_MAX: usize = 64 << 10;
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

pub struct Framing {
    place: Place,
    /// Of the line under way, what came before.
    line: Vec<u8>,
    head: Head,
    is_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The next byte is of an empty line, or of a request.
    Between,
    Fields,
    /// So many bytes of a body, of known length.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk, and the end of line after it.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// HTTP/2, which has frames of its own.
    Other,
}

/// What the fields of one head say.
#[derive(Default)]
struct Head {
    is_http_11: bool,
    hosts: usize,
    length: Option<u64>,
    is_chunked: bool,
}

/// What came has two readings, or none.
#[derive(Debug, PartialEq, Eq)]
pub struct Ambiguous;

impl Framing {
    pub fn new() -> Framing {
        Framing {
            place: Place::Between,
            line: Vec::new(),
            head: Head::default(),
            is_first: true,
        }
    }

    /// A request has begun, and its head is not whole yet.
    pub fn is_in_head(&self) -> bool {
        match self.place {
            Place::Fields => true,
            Place::Between => !self.line.is_empty(),
            _ => false,
        }
    }

    /// A chunked body is not whole yet.
    pub fn is_in_chunks(&self) -> bool {
        matches!(
            self.place,
            Place::ChunkSize | Place::Chunk(_) | Place::ChunkEnd | Place::Trailers
        )
    }

    /// Takes in what came. An error says how many bytes of it may be passed on; after it nothing
    /// may come.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.place {
                Place::Other => return Ok(()),
                Place::Body(left) => {
                    let taken = skip(left, rest);
                    self.place = match left - taken as u64 {
                        0 => Place::Between,
                        left => Place::Body(left),
                    };
                    at += taken;
                }
                Place::Chunk(left) => {
                    let taken = skip(left, rest);
                    self.place = match left - taken as u64 {
                        0 => Place::ChunkEnd,
                        left => Place::Chunk(left),
                    };
                    at += taken;
                }
                _ => {
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    let taken = end.map_or(rest.len(), |end| end + 1);
                    if self.line.len() + taken > LINE_MAX {
                        return Err(at);
                    }
                    self.line.extend_from_slice(&rest[..taken]);
                    if end.is_some() {
                        let line = std::mem::take(&mut self.line);
                        // Without the end of the line hyper has nothing to act on.
                        self.place = self.end_of(&line).map_err(|_| at + taken - 1)?;
                        self.line = line;
                        self.line.clear();
                    }
                    at += taken;
                }
            }
        }
        Ok(())
    }

    /// Where a line with its end leads.
    fn end_of(&mut self, line: &[u8]) -> Result<Place, Ambiguous> {
        if line == HTTP2 && self.is_first {
            return Ok(Place::Other);
        }
        let line = line.strip_suffix(b"\r\n").ok_or(Ambiguous)?;
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(Ambiguous);
        }
        match self.place {
            Place::Between if line.is_empty() => Ok(Place::Between),
            Place::Between => {
                self.is_first = false;
                let is_http_11 = line.ends_with(b" HTTP/1.1");
                if !is_http_11 && !line.ends_with(b" HTTP/1.0") {
                    return Err(Ambiguous);
                }
                self.head = Head {
                    is_http_11,
                    ..Head::default()
                };
                Ok(Place::Fields)
            }
            Place::Fields if line.is_empty() => self.head.body(),
            Place::Fields => self.head.field(line).map(|()| Place::Fields),
            Place::ChunkSize => chunk_size(line).map(|size| match size {
                0 => Place::Trailers,
                size => Place::Chunk(size),
            }),
            Place::ChunkEnd if line.is_empty() => Ok(Place::ChunkSize),
            Place::Trailers if line.is_empty() => Ok(Place::Between),
            Place::Trailers => Ok(Place::Trailers),
            Place::ChunkEnd | Place::Body(_) | Place::Chunk(_) | Place::Other => Err(Ambiguous),
        }
    }
}

fn skip(left: u64, rest: &[u8]) -> usize {
    usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()))
}

impl Head {
    fn field(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Ambiguous)?);
        let value = value[1..].trim_ascii();
        if name.first().is_none_or(u8::is_ascii_whitespace)
            || name.last().is_some_and(u8::is_ascii_whitespace)
        {
            return Err(Ambiguous);
        }
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        if is(b"host") {
            self.hosts += 1;
        } else if is(b"content-length") {
            let length = number(value, 10).ok_or(Ambiguous)?;
            if self.is_chunked || self.length.replace(length).is_some() {
                return Err(Ambiguous);
            }
        } else if is(b"transfer-encoding") {
            let is_known = value.eq_ignore_ascii_case(b"chunked") && self.is_http_11;
            if !is_known || self.length.is_some() || self.is_chunked {
                return Err(Ambiguous);
            }
            self.is_chunked = true;
        }
        Ok(())
    }

    /// After the head.
    fn body(&self) -> Result<Place, Ambiguous> {
        let is_addressed = match self.is_http_11 {
            true => self.hosts == 1,
            false => self.hosts <= 1,
        };
        match self.length {
            _ if !is_addressed => Err(Ambiguous),
            _ if self.is_chunked => Ok(Place::ChunkSize),
            None | Some(0) => Ok(Place::Between),
            Some(length) => Ok(Place::Body(length)),
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Ambiguous> {
    let end = line
        .iter()
        .position(|byte| matches!(byte, b';' | b' ' | b'\t'));
    number(&line[..end.unwrap_or(line.len())], 16).ok_or(Ambiguous)
}

/// Digits alone: no sign, and no number that does not fit.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    let is_plain = digits.chars().all(|c| c.is_digit(radix));
    is_plain.then(|| u64::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, proptest};

    /// The places after all of it, given in pieces of `size`; None when it is refused.
    fn read(bytes: &[u8], size: usize) -> Option<Place> {
        let mut framing = Framing::new();
        for piece in bytes.chunks(size) {
            framing.take(piece).ok()?;
        }
        Some(framing.place)
    }

    fn head(fields: &str) -> Vec<u8> {
        format!("PUT /v2/ HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn each_request_ends_where_its_head_says() {
        let cases = [
            ("", "", Place::Between),
            ("Content-Length: 5\r\n", "hello", Place::Between),
            ("Content-Length: 5\r\n", "hel", Place::Body(2)),
            ("content-length:0\r\n", "", Place::Between),
            (
                "Transfer-Encoding: Chunked\r\n",
                "5\r\nhello\r\n0\r\n\r\n",
                Place::Between,
            ),
            (
                "Transfer-Encoding: chunked\r\n",
                "5;a=b\r\nhello\r\n0 \r\nA: b\r\n\r\n",
                Place::Between,
            ),
            (
                "Transfer-Encoding: chunked\r\n",
                "A\r\nhel",
                Place::Chunk(7),
            ),
            // What looks like a request inside a body is none.
            (
                "Content-Length: 16\r\n",
                "GET / HTTP/9.9\n\n",
                Place::Between,
            ),
        ];
        for (fields, body, place) in cases {
            let bytes = [&head(fields), body.as_bytes()].concat();
            for size in 1..bytes.len() {
                assert_eq!(
                    read(&bytes, size),
                    Some(place),
                    "{fields:?} {body:?} by {size}"
                );
            }
            if place == Place::Between {
                assert_eq!(
                    read(&bytes.repeat(3), 7),
                    Some(place),
                    "{fields:?} {body:?}"
                );
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let fields = [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length : 5\r\n",
            "A: b\r\n Content-Length: 5\r\n",
            "A: b\nContent-Length: 5\r\n",
            "A: b\rContent-Length: 5\r\n",
            "A: b\0\r\n",
            "no colon\r\n",
            "Host: y\r\n",
        ];
        for fields in fields {
            assert_eq!(read(&head(fields), usize::MAX), None, "{fields:?}");
        }
        let chunked = head("Transfer-Encoding: chunked\r\n");
        for body in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "5\n",
            "5\rx\n",
            "5;\n\r\n",
            "ffffffffffffffff1\r\n",
            "1\r\nab\r\n",
            "0\r\nA: b\n\r\n",
        ] {
            let bytes = [&chunked, body.as_bytes()].concat();
            assert_eq!(read(&bytes, usize::MAX), None, "{body:?}");
        }
        for whole in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/1.1\nHost: x\n\n",
            b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
        ] {
            assert_eq!(read(whole, usize::MAX), None, "{}", whole.escape_ascii());
        }
        assert_eq!(read(b"GET / HTTP/1.0\r\n\r\n", 3), Some(Place::Between));
    }

    #[test]
    fn a_refusal_leaves_out_the_end_of_the_bad_line_and_what_follows() {
        let good = head("");
        let bad = b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n";
        let bytes = [&good[..], bad].concat();
        let mut framing = Framing::new();
        let kept = framing.take(&bytes).unwrap_err();
        assert!(bytes[..kept].ends_with(b"Host: x"), "{kept}");
    }

    #[test]
    fn only_the_first_line_may_open_http_2() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0";
        assert_eq!(read(preface, 5), Some(Place::Other));
        let later = [&head("")[..], preface].concat();
        assert_eq!(read(&later, usize::MAX), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_pieces_do_not_matter(
            parts in prop::collection::vec("GET / HTTP/1.1|\r\n|\n|Host: x|Content-Length: [0-9]{1,3}|Transfer-Encoding: chunked|[0-9a-f]{1,2}|0|[a-z ]{1,9}", 0..24),
            noise in any::<Vec<u8>>(),
            size in 1usize..20,
        ) {
            for bytes in [parts.concat().into_bytes(), noise] {
                let whole = read(&bytes, usize::MAX);
                assert_eq!(whole, read(&bytes, size));
            }
        }
    }
}
