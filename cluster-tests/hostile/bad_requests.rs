//! Bad requests, made from good ones of every endpoint: names, digests, ranges, fields, framing,
//! bodies and frames, changed in one to three places, each by chance or by a known trick.

use super::frames;
use crate::harness::client::{IMAGE, sha256};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;

pub struct Generator {
    rng: StdRng,
    /// What there is: only read, never changed.
    manifest: String,
    blob: String,
    /// Open uploads of `bad/app`.
    pub uploads: Vec<String>,
}

#[derive(Clone)]
struct Request {
    method: String,
    target: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

const METHODS: [&str; 12] = [
    "get",
    "G@T",
    "",
    "TRACE",
    "CONNECT",
    "OPTIONS",
    "PROPFIND",
    "HEAD",
    "GET GET",
    "PRI",
    "\u{1}",
    "GETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGETGET",
];

/// For a path: what a parser may stumble over.
const WORDS: [&[u8]; 28] = [
    b"..",
    b"../../etc/passwd",
    b"%2e%2e",
    b"%2f",
    b"%2F..%2F",
    b"%00",
    b"\0",
    b"%",
    b"%zz",
    b"//",
    b"/",
    b"\\",
    b"?",
    b"#",
    b"@",
    b":",
    b"::",
    b"A",
    b"-",
    b"___",
    b".",
    b"\xff\xfe",
    b"\xc3\xa9",
    b" ",
    b"\t",
    b"\r",
    b"\n",
    b"*",
];

const DIGESTS: [&str; 11] = [
    "sha256:",
    ":",
    "sha256",
    "sha256:abc",
    "sha512:abc",
    "md5:d41d8cd98f00b204e9800998ecf8427e",
    "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85g",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
    "sha256%3ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];

const QUERIES: [&str; 22] = [
    "n=-1",
    "n=0",
    "n=99999999999999999999999",
    "n=ten",
    "n=%00",
    "last=%ff",
    "last=../..",
    "n=1&n=2",
    "digest=",
    "digest=sha256:zz",
    "digest=%73ha256:",
    "digest-algorithm=md5",
    "mount=sha256:zz&from=good/app",
    "mount=&from=",
    "from=../..",
    "tag=",
    "tag=.dot",
    "tag=a&tag=a&tag=%20",
    "artifactType=%00",
    "for=lunch",
    "&&&=",
    "a=%",
];

const FIELDS: [(&str, &[u8]); 48] = [
    ("Range", b"bytes=5-1"),
    ("Range", b"bytes=-"),
    ("Range", b"bytes=99999999999999999999-"),
    ("Range", b"bytes=0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0"),
    ("Range", b"bytes=-0"),
    ("Range", b"lines=1-2"),
    ("Range", b"\xff"),
    ("Range", b"0-4"),
    ("Content-Range", b"5-1"),
    ("Content-Range", b"0-99999999999999999999"),
    (
        "Content-Range",
        b"18446744073709551615-18446744073709551615",
    ),
    ("Content-Range", b"0-18446744073709551615"),
    ("Content-Range", b"x-y"),
    ("Content-Range", b"bytes 0-0/*"),
    ("Content-Range", b""),
    ("Content-Range", b"1-1"),
    ("If-Match", b"*"),
    ("If-Match", b"\"sha256:zz\""),
    ("If-None-Match", b"\xff"),
    ("If-None-Match", b"W/\"x\", *"),
    ("If-Range", b"never"),
    ("Content-Type", b""),
    ("Content-Type", b"text/plain"),
    ("Content-Type", b"\xff/\xff"),
    ("Content-Type", b"application/vnd.oci.image.index.v1+json"),
    (
        "Content-Type",
        b"application/vnd.docker.distribution.manifest.v1+prettyjws",
    ),
    ("Content-Length", b"5"),
    ("Content-Length", b"-5"),
    ("Content-Length", b"99999999999999999999"),
    ("Content-Length", b"0x5"),
    ("Content-Length", b"1, 1"),
    ("Transfer-Encoding", b"chunked"),
    ("Transfer-Encoding", b"gzip"),
    ("Transfer-Encoding", b"chunked, identity"),
    ("Transfer-Encoding", b"xchunked"),
    ("Host", b"y"),
    ("Connection", b"upgrade, close, keep-alive"),
    ("Connection", b"host"),
    ("Upgrade", b"h2c"),
    ("Expect", b"100-continue"),
    ("Expect", b"the-unexpected"),
    ("Accept", b"*/*;q=NaN"),
    ("Accept-Encoding", b"gzip"),
    ("TE", b"trailers"),
    ("Authorization", b"Bearer \xff"),
    ("Authorization", b"Basic ===="),
    ("X-Forwarded-For", b"127.0.0.1"),
    ("\0", b"x"),
];

/// For JSON.
const TOKENS: [&str; 20] = [
    "[",
    "]",
    "{",
    "}",
    "\"",
    ",",
    ":",
    "null",
    "-1",
    "1e400",
    "18446744073709551616",
    "0.5",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\0",
    "\"layers\":[],",
    "\"Layers\":[],",
    "\"mediaType\":\"text/plain\",",
    "\"subject\":{},",
];

impl Generator {
    pub fn new(seed: u64, manifest: String, blob: String) -> Generator {
        Generator {
            rng: StdRng::seed_from_u64(seed),
            manifest,
            blob,
            uploads: Vec::new(),
        }
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).unwrap()
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n.max(1))
    }

    /// One of each endpoint, which would do no harm: it reads `good/app`, or means things of
    /// `bad/app` that are not there.
    fn good(&mut self) -> Request {
        let (manifest, blob) = (self.manifest.clone(), self.blob.clone());
        let absent = sha256(b"absent");
        let upload = match self.uploads.is_empty() {
            true => "/v2/bad/app/blobs/uploads/none".to_owned(),
            false => {
                let n = self.below(self.uploads.len());
                self.uploads[n].clone()
            }
        };
        let uploads = "/v2/bad/app/blobs/uploads/";
        let bytes = b"some bytes of a blob".to_vec();
        let image = || {
            let descriptor = json!({"mediaType": "a/b", "digest": absent.to_string(), "size": 3});
            json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor, "layers": [descriptor], "annotations": {"a": "b"}})
                .to_string()
                .into_bytes()
        };
        let get = |target: String| ("GET", target, Vec::new());
        let (method, target, body) = match self.below(24) {
            0 => get("/v2/".to_owned()),
            1 => get("/v2/_catalog?n=10&last=a".to_owned()),
            2 => get(format!("/v2/good/app/blobs/{blob}")),
            3 => ("HEAD", format!("/v2/good/app/blobs/{blob}"), Vec::new()),
            4 => ("DELETE", format!("/v2/bad/app/blobs/{absent}"), Vec::new()),
            5 => get("/v2/good/app/manifests/v1".to_owned()),
            6 => get(format!("/v2/good/app/manifests/{manifest}")),
            7 => ("HEAD", "/v2/good/app/manifests/v1".to_owned(), Vec::new()),
            8 => ("PUT", "/v2/bad/app/manifests/v1".to_owned(), image()),
            9 => (
                "PUT",
                format!("/v2/bad/app/manifests/{absent}?tag=a&tag=b"),
                image(),
            ),
            10 => ("DELETE", "/v2/bad/app/manifests/v1".to_owned(), Vec::new()),
            11 => (
                "DELETE",
                format!("/v2/bad/app/manifests/{absent}"),
                Vec::new(),
            ),
            12 => ("POST", format!("{uploads}?digest={absent}"), bytes),
            13 => (
                "POST",
                format!("{uploads}?mount={absent}&from=good/app&digest={absent}"),
                bytes,
            ),
            14 => ("PATCH", upload, bytes),
            15 => ("PUT", format!("{upload}?digest={absent}"), bytes),
            16 => get(upload),
            17 => ("DELETE", format!("{uploads}none"), Vec::new()),
            18 => get("/v2/good/app/tags/list?n=2&last=v".to_owned()),
            19 => get(format!(
                "/v2/good/app/referrers/{manifest}?artifactType=a%2Fb"
            )),
            20 => get("/healthz?for=pushes".to_owned()),
            21 => get("/api/v1/status".to_owned()),
            22 => (
                "PUT",
                "/api/v1/policies/bad/app".to_owned(),
                b"{\"copies\": 99}".to_vec(),
            ),
            _ => ("DELETE", "/api/v1/policies/bad/app".to_owned(), Vec::new()),
        };
        let mut fields = vec![("Host".to_owned(), b"x".to_vec())];
        if !body.is_empty() {
            fields.push(("Content-Type".to_owned(), IMAGE.as_bytes().to_vec()));
            fields.push((
                "Content-Length".to_owned(),
                body.len().to_string().into_bytes(),
            ));
        }
        Request {
            method: method.to_owned(),
            target: target.into_bytes(),
            fields,
            body,
        }
    }

    fn insert(&mut self, into: &mut Vec<u8>, bytes: &[u8]) {
        let at = self.below(into.len() + 1);
        into.splice(at..at, bytes.iter().copied());
    }

    /// Random bytes somewhere, some taken away, or some twice.
    fn noise(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let from = self.below(bytes.len());
            let to = (from + 1 + self.below(8)).min(bytes.len());
            match self.below(5) {
                0 => bytes[from] ^= 1 << self.below(8),
                1 => bytes[from] = self.rng.random(),
                2 => drop(bytes.drain(from..to)),
                3 => {
                    let again = bytes[from..to].to_vec();
                    self.insert(bytes, &again);
                }
                _ => bytes.truncate(from),
            }
        }
    }

    fn spoil(&mut self, request: &mut Request) {
        let target = String::from_utf8_lossy(&request.target).into_owned();
        match self.below(12) {
            0 => {
                let name = match self.below(3) {
                    0 => "a".repeat(self.below(400)),
                    1 => "a/".repeat(self.below(6000)),
                    _ => [
                        "Bad",
                        "-a",
                        "a..b",
                        "a___b",
                        "v2",
                        "blobs/uploads",
                        "a:5000/b",
                    ][self.below(7)]
                    .to_owned(),
                };
                let name = target.replace("good/app", &name).replace("bad/app", &name);
                request.target = name.into_bytes();
            }
            1 => {
                let digest = match self.below(4) {
                    0 => format!("sha256:{}", "a".repeat(self.below(5000))),
                    _ => self.one_of(&DIGESTS).to_owned(),
                };
                let at = target.find("sha256:").unwrap_or(target.len());
                let end = (at + 71).min(target.len());
                let target = target.as_bytes();
                request.target = [&target[..at], digest.as_bytes(), &target[end..]].concat();
            }
            2 => {
                let with = if target.contains('?') { '&' } else { '?' };
                let query = match self.below(8) {
                    0 => "tag=t&".repeat(self.below(3000)),
                    _ => self.one_of(&QUERIES).to_owned(),
                };
                request.target.extend(format!("{with}{query}").into_bytes());
            }
            3 | 4 => {
                let word = self.one_of(&WORDS);
                self.insert(&mut request.target, word);
            }
            5 | 6 => {
                let (name, value) = self.one_of(&FIELDS);
                request.fields.push((name.to_owned(), value.to_vec()));
            }
            7 => {
                let (name, value) = match self.below(3) {
                    0 => ("A".repeat(self.below(70_000)), b"x".to_vec()),
                    1 => ("a".to_owned(), vec![b'x'; self.below(70_000)]),
                    _ => {
                        for _ in 0..self.below(300) {
                            request.fields.push(("a".to_owned(), b"b".to_vec()));
                        }
                        return;
                    }
                };
                request.fields.push((name, value));
            }
            8 => {
                let n = self.below(request.fields.len());
                request.fields.splice(n.., []);
            }
            9 => request.method = self.one_of(&METHODS).to_owned(),
            _ => {
                match self.below(4) {
                    0 => {
                        let deep = 1 << self.below(16);
                        let deep = [b"[".repeat(deep), b"]".repeat(deep)].concat();
                        self.insert(&mut request.body, &deep);
                    }
                    1 => {
                        let token = self.one_of(&TOKENS);
                        self.insert(&mut request.body, token.as_bytes());
                    }
                    _ => self.noise(&mut request.body),
                }
                let length = request.body.len().to_string().into_bytes();
                // Half of them in ignorance of the change.
                if self.rng.random() {
                    for (name, value) in &mut request.fields {
                        if name == "Content-Length" {
                            value.clone_from(&length);
                        }
                    }
                }
            }
        }
    }

    fn spoiled(&mut self) -> Request {
        let mut request = self.good();
        for _ in 0..=self.below(3) {
            self.spoil(&mut request);
        }
        request
    }

    /// For HTTP/1.1.
    pub fn http_1(&mut self) -> Vec<u8> {
        let mut request = match self.below(4) {
            0 => self.good(),
            _ => self.spoiled(),
        };
        let tricks = self.below(6);
        let mut body = request.body.clone();
        if tricks == 0 && !body.is_empty() {
            request.fields.retain(|(name, _)| name != "Content-Length");
            request
                .fields
                .push(("Transfer-Encoding".to_owned(), b"chunked".to_vec()));
            let (one, two) = request.body.split_at(request.body.len() / 2);
            body = [
                format!("{:x};a=b\r\n", one.len()).as_bytes(),
                one,
                format!("\r\n{:X}\r\n", two.len()).as_bytes(),
                two,
                b"\r\n0\r\nA: b\r\n\r\n",
            ]
            .concat();
            self.noise(&mut body);
        }
        let end: &str = if tricks == 1 { "\n" } else { "\r\n" };
        let version = match tricks {
            2 => [
                "HTTP/1.0",
                "HTTP/0.9",
                "HTTP/2.0",
                "HTTP/9.9",
                "http/1.1",
                "",
                "HTTP/1.1 x",
            ][self.below(7)],
            _ => "HTTP/1.1",
        };
        let mut bytes = request.method.into_bytes();
        bytes.push(b' ');
        bytes.extend(request.target);
        bytes.extend(format!(" {version}{end}").into_bytes());
        for (name, value) in request.fields {
            let fold = if tricks == 3 && self.below(3) == 0 {
                "\r\n "
            } else {
                ""
            };
            let space = if tricks == 4 && self.below(3) == 0 {
                " "
            } else {
                ""
            };
            bytes.extend(format!("{name}{space}:{fold} ").into_bytes());
            bytes.extend(value);
            bytes.extend(end.as_bytes());
        }
        bytes.extend(format!("Connection: close{end}{end}").into_bytes());
        bytes.extend(body);
        if self.below(4) == 0 {
            self.noise(&mut bytes);
        }
        bytes
    }

    /// For HTTP/2: some requests on one connection, in frames that may be wrong too.
    pub fn http_2(&mut self) -> Vec<u8> {
        let setting = (
            self.rng.random_range(0..9),
            self.rng.random_range(0..1 << 20),
        );
        let mut bytes = match self.below(4) {
            0 => frames::opening(&[setting]),
            _ => frames::opening(&[]),
        };
        for n in 0..=self.below(3) {
            let request = self.spoiled();
            let stream = match self.below(10) {
                0 => self.rng.random_range(0..8),
                _ => 2 * n as u32 + 1,
            };
            let mut block =
                frames::request(&request.method, &String::from_utf8_lossy(&request.target));
            for (name, value) in request.fields.iter().filter(|field| field.0 != "Host") {
                let name = match self.below(20) {
                    0 => name.clone(),
                    _ => name.to_lowercase(),
                };
                block.extend(frames::field(&name, &String::from_utf8_lossy(value)));
            }
            let with_body = !request.body.is_empty();
            let end_stream = if with_body { 0 } else { frames::END_STREAM };
            let spare = self.below(20) == 0;
            if spare {
                self.noise(&mut block);
            }
            let parts: Vec<&[u8]> = block.chunks(16 << 10).collect();
            for (i, part) in parts.iter().enumerate() {
                let kind = if i == 0 {
                    frames::HEADERS
                } else {
                    frames::CONTINUATION
                };
                let end_headers = if i + 1 == parts.len() {
                    frames::END_HEADERS
                } else {
                    0
                };
                let flags = end_headers | if i == 0 { end_stream } else { 0 };
                let flags = if self.below(20) == 0 {
                    self.rng.random()
                } else {
                    flags
                };
                bytes.extend(frames::frame(kind, flags, stream, part));
            }
            if with_body {
                for part in request.body.chunks(16 << 10) {
                    bytes.extend(frames::frame(frames::DATA, 0, stream, part));
                }
                bytes.extend(frames::frame(frames::DATA, frames::END_STREAM, stream, &[]));
            }
            if self.below(6) == 0 {
                let kind = self.rng.random_range(0..11);
                let size = [0, 1, 4, 5, 6, 8, 100][self.below(7)];
                let payload: Vec<u8> = (0..size).map(|_| self.rng.random()).collect();
                bytes.extend(frames::frame(kind, self.rng.random(), stream, &payload));
            }
        }
        if self.below(4) == 0 {
            let mut rest = bytes.split_off(24);
            self.noise(&mut rest);
            bytes.extend(rest);
        }
        bytes
    }
}
