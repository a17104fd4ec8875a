//! The leanest HTTP/1.1 client that can be: blocking, one connection, bodies counted and thrown
//! away, so that what is measured is the server.

use roadstead::oci::Digest;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub struct Wire {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub length: u64,
    /// From the request to the first byte of the body.
    pub first_byte: Duration,
}

/// A body in pieces, sent as one, at most at `rate` bytes per second.
#[derive(Clone, Copy, Default)]
pub struct Body<'a> {
    pub pieces: [&'a [u8]; 2],
    pub rate: Option<u64>,
}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(bytes: &'a [u8]) -> Body<'a> {
        Body {
            pieces: [bytes, &[]],
            rate: None,
        }
    }
}

impl Body<'_> {
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    #[allow(clippy::disallowed_methods, reason = "keeps to a rate")]
    fn write_to(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let (began, mut sent) = (Instant::now(), 0u64);
        for part in self.pieces.iter().flat_map(|piece| piece.chunks(64 << 10)) {
            stream.write_all(part)?;
            sent += part.len() as u64;
            if let Some(rate) = self.rate {
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
        }
        Ok(())
    }
}

impl Wire {
    pub fn new(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Wire {
            stream: BufReader::with_capacity(1 << 20, stream),
            address,
        }
    }

    pub fn send(&mut self, method: &str, target: &str, headers: &str, body: Body) -> Answer {
        let began = Instant::now();
        let (address, length) = (self.address, body.len());
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n{headers}\r\n"
        )
        .into_bytes();
        let stream = self.stream.get_mut();
        // A small one goes out with its head, as clients do it.
        let is_small = body.rate.is_none() && length < 16 << 10;
        if is_small {
            head.extend(body.pieces.concat());
        }
        stream.write_all(&head).expect("send a head");
        if !is_small {
            body.write_to(stream).expect("send a body");
        }
        let mut answer = self.head();
        if answer.length > 0 {
            self.stream.fill_buf().expect("read a body");
        }
        answer.first_byte = began.elapsed();
        let mut left = answer.length;
        while left > 0 {
            let here = self.stream.fill_buf().expect("read a body").len() as u64;
            assert!(here > 0, "the body of {target} was cut short");
            let taken = here.min(left);
            self.stream.consume(taken as usize);
            left -= taken;
        }
        answer
    }

    fn head(&mut self) -> Answer {
        let mut answer = Answer {
            status: 0,
            location: None,
            length: 0,
            first_byte: Duration::ZERO,
        };
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("read a head");
            let line = line.trim_end();
            if line.is_empty() {
                assert!(answer.status > 0, "no answer");
                return answer;
            }
            if answer.status == 0 {
                let status = line.split(' ').nth(1).expect("a status line");
                answer.status = status.parse().expect("a status");
                continue;
            }
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => answer.length = value.parse().expect("a length"),
                "location" => answer.location = Some(value.to_owned()),
                "transfer-encoding" => panic!("an answer without a length"),
                _ => {}
            }
        }
    }

    pub fn get(&mut self, target: &str) -> Answer {
        let answer = self.send("GET", target, "", Body::default());
        assert_eq!(answer.status, 200, "GET {target}");
        answer
    }

    /// POST, then one PUT.
    pub fn push_blob(&mut self, repository: &str, digest: &Digest, body: Body) {
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.send("POST", &uploads, "", Body::default());
        assert_eq!(begun.status, 202, "POST {uploads}");
        let location = begun.location.expect("a location");
        // Some answer with a whole URL.
        let path = location.find("/v2/").expect("a path of the API");
        let sign = if location.contains('?') { '&' } else { '?' };
        let target = format!("{}{sign}digest={digest}", &location[path..]);
        let put = self.send(
            "PUT",
            &target,
            "content-type: application/octet-stream\r\n",
            body,
        );
        assert_eq!(put.status, 201, "PUT {target}");
    }

    pub fn put_manifest(&mut self, repository: &str, tag: &str, manifest: &[u8]) {
        let target = format!("/v2/{repository}/manifests/{tag}");
        let header = format!("content-type: {}\r\n", crate::harness::client::IMAGE);
        let put = self.send("PUT", &target, &header, manifest.into());
        assert_eq!(put.status, 201, "PUT {target}");
    }

    /// A small image: what it names, then the manifest.
    pub fn push(&mut self, repository: &str, tag: &str, image: &crate::harness::client::Image) {
        for (digest, bytes) in &image.blobs {
            self.push_blob(repository, digest, bytes.as_ref().into());
        }
        self.put_manifest(repository, tag, &image.manifest);
    }
}
