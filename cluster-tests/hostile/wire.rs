//! Bytes over a raw socket, and what comes back.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer, and no end, may take longer.
pub const LONGEST: Duration = Duration::from_secs(10);

pub async fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What comes until the server closes, by itself: this side stays open.
pub async fn until_closed(stream: &mut TcpStream, what: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let read = async {
        let mut buf = [0; 16 << 10];
        // A reset is an end too, after what was read.
        while let Ok(size @ 1..) = stream.read(&mut buf).await {
            all.extend_from_slice(&buf[..size]);
        }
    };
    let closed = timeout(LONGEST, read).await.is_ok();
    assert!(closed, "{what}: still open after {}", all.escape_ascii());
    all
}

/// Sends it all, then reads until the server closes.
pub async fn ask(address: &str, bytes: &[u8], what: &str) -> Vec<u8> {
    let mut stream = connect(address).await;
    // The server may close while this is sent.
    let _ = timeout(LONGEST, stream.write_all(bytes)).await;
    until_closed(&mut stream, what).await
}

/// The status of each answer over HTTP/1.1.
pub fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    let lines = text.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}
