//! Stops, and clients that keep a connection waiting, with the clock moved by hand.

use super::*;
use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::time::Instant;

#[tokio::test]
async fn a_stop_lets_a_request_under_way_end() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, go_on) = (begun.clone(), go_on.clone());
        move || async move {
            begun.notify_one();
            go_on.notified().await;
            "done"
        }
    };
    let router = axum::Router::new().route("/", axum::routing::get(handler));
    let listener = bind("test", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = Server::http("test", listener, Limits::all(16), None, router).unwrap();
    let url = format!("http://{}/", server.address());

    let tasks = Tasks::new();
    let answer = tasks.spawn(async move { reqwest::get(url).await?.text().await });
    begun.notified().await;
    let stopped = Arc::new(AtomicBool::new(false));
    let stopping = {
        let stopped = stopped.clone();
        tasks.spawn(async move {
            server.stop(Duration::from_secs(60)).await;
            stopped.store(true, Ordering::SeqCst);
        })
    };
    assert!(!stopped.load(Ordering::SeqCst));
    go_on.notify_one();
    assert_eq!(answer.await.unwrap().unwrap(), "done");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_at_the_deadline() {
    let begun = Arc::new(Notify::new());
    let handler = {
        let begun = begun.clone();
        move || async move {
            begun.notify_one();
            std::future::pending::<()>().await;
        }
    };
    let router = axum::Router::new().route("/", axum::routing::get(handler));
    let listener = bind("test", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = Server::http("test", listener, Limits::all(16), None, router).unwrap();
    let url = format!("http://{}/", server.address());
    let tasks = Tasks::new();
    let answer = tasks.spawn(reqwest::get(url));
    begun.notified().await;
    server.stop(Duration::from_millis(10)).await;
    assert!(answer.await.unwrap().is_err());
}

/// A connection to `router` on which so many bytes may be under way.
fn connect(router: axum::Router, room: usize) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(room);
    let connection = Connection {
        client: "192.0.2.1:1".parse().unwrap(),
        is_secure: false,
        stop: CancellationToken::new(),
        cut: CancellationToken::new(),
        tasks: Tasks::new(),
        requests_of_client: Arc::new(Semaphore::new(8)),
        requests: Arc::new(Semaphore::new(8)),
    };
    let tasks = connection.tasks.clone();
    tasks.spawn(serve::http(theirs, router, connection));
    ours
}

fn answering(body: impl Fn() -> Body + Clone + Send + Sync + 'static) -> axum::Router {
    axum::Router::new().fallback(move || {
        let body = body();
        async move { body }
    })
}

/// Takes the whole body, or says why not.
fn taking() -> axum::Router {
    axum::Router::new().fallback(|body: Body| async move {
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => format!("took {}", bytes.len()),
            Err(error) => format!("refused: {:?}", error),
        }
    })
}

/// What comes until the server closes, and after how many seconds that is.
async fn end(mut stream: DuplexStream) -> (String, u64) {
    let begun = Instant::now();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    let text = String::from_utf8_lossy(&all).into_owned();
    (text, begun.elapsed().as_secs())
}

async fn read_until(stream: &mut DuplexStream, end: &[u8]) {
    let mut all = Vec::new();
    while !all.ends_with(end) {
        all.push(stream.read_u8().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_as_long_as_clients_keep_it_and_then_ends() {
    let router = answering(|| Body::from("hello"));
    let mut stream = connect(router.clone(), 4096);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(90)).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut stream, b"hello").await;
    }
    let (rest, seconds) = end(stream).await;
    assert!(
        rest.is_empty() && (90..=120).contains(&seconds),
        "{rest} {seconds}"
    );
    let (rest, seconds) = end(connect(router, 4096)).await;
    assert!(
        rest.is_empty() && (90..=120).contains(&seconds),
        "{rest} {seconds}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_must_end_soon() {
    for (begun, drip) in [
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b", "b"),
        ("\r\nG", "G"),
        ("PRI * HTT", ""),
    ] {
        let (mut read, mut write) =
            tokio::io::split(connect(answering(|| Body::from("hello")), 4096));
        write.write_all(begun.as_bytes()).await.unwrap();
        let began = Instant::now();
        let dribble = async {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                if write.write_all(drip.as_bytes()).await.is_err() {
                    break std::future::pending().await;
                }
            }
        };
        let mut all = Vec::new();
        tokio::select! {
            read = read.read_to_end(&mut all) => { read.unwrap(); }
            () = dribble => {}
        }
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with("HTTP/1.1 400"), "{begun:?}: {text:?}");
        assert_eq!(began.elapsed().as_secs(), 30, "{begun:?}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending_and_the_connection_goes_on() {
    let refusing = || async { (http::StatusCode::BAD_REQUEST, "for a reason") };
    let mut stream = connect(axum::Router::new().fallback(refusing), 64 << 10);
    for _ in 0..2 {
        let head = format!(
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            8 << 20
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; 8 << 20]).await.unwrap();
        read_until(&mut stream, b"for a reason").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_given_up_and_one_that_is_slow_is_not() {
    for (bytes, pause, is_taken) in [(1, 50, false), (0, 50, false), (8 << 10, 7, true)] {
        let (mut read, mut write) = tokio::io::split(connect(taking(), 64 << 10));
        let head = format!(
            "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            100 << 10
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let began = Instant::now();
        let sender = async {
            let mut sent = 0;
            while sent < 100 << 10 {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                let size = bytes.min((100 << 10) - sent);
                if write.write_all(&vec![b'x'; size]).await.is_err() {
                    break;
                }
                sent += size;
            }
            std::future::pending::<()>().await
        };
        let mut text = Vec::new();
        tokio::select! {
            read = read.read_to_end(&mut text) => { read.unwrap(); }
            () = sender => unreachable!(),
        }
        let text = String::from_utf8_lossy(&text);
        if is_taken {
            assert!(text.ends_with("took 102400"), "{text}");
        } else {
            assert!(text.contains("slower than"), "{text}");
            assert_eq!(began.elapsed().as_secs(), 60, "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_blamed_for_what_the_server_takes() {
    let hour = Duration::from_secs(3600);
    let router = axum::Router::new().fallback(move |body: Body| async move {
        let mut sent = body.into_data_stream();
        let mut size = 0;
        while let Some(bytes) = sent.next().await {
            size += bytes.unwrap().len();
            tokio::time::sleep(hour).await;
        }
        let pieces = stream::unfold(0, move |n| async move {
            tokio::time::sleep(hour).await;
            (n < 3).then(|| (Ok::<_, io::Error>(format!("{size} ")), n + 1))
        });
        Body::from_stream(pieces)
    });
    let mut stream = connect(router.clone(), 1024);
    let request = "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5000\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(&[b'x'; 5000]).await.unwrap();
    let (text, _) = end(stream).await;
    assert!(text.contains("200 OK") && text.contains("5000 "), "{text}");

    let (mut send, _tasks) = http_2(connect(router, 1024), 1 << 16).await;
    let (answer, mut body) = send.send_request(http_2_get(), false).unwrap();
    body.send_data(Bytes::from(vec![b'x'; 5000]), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut text = Vec::new();
    while let Some(bytes) = body.data().await {
        text.extend_from_slice(&bytes.unwrap());
    }
    assert_eq!(text, b"5000 5000 5000 ");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_its_answer_is_given_up_and_a_slow_one_is_not() {
    let router = answering(|| Body::from(vec![b'x'; 200 << 10]));
    let get = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut stream = connect(router.clone(), 1024);
    stream.write_all(get).await.unwrap();
    let mut first = [0; 100];
    stream.read_exact(&mut first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(119)).await;
    stream.read_exact(&mut first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (rest, _) = end(stream).await;
    assert!(rest.len() <= 1024, "{}", rest.len());

    let mut stream = connect(router, 1024);
    stream.write_all(get).await.unwrap();
    let (mut all, mut buf) = (0, [0; 8 << 10]);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match stream.read(&mut buf).await.unwrap() {
            0 => break,
            size => all += size,
        }
    }
    assert!(all > 200 << 10, "{all}");
}

/// A client over HTTP/2 whose windows are of that size, and which opens none further by itself.
async fn http_2(stream: DuplexStream, window: u32) -> (h2::client::SendRequest<Bytes>, Tasks) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (send, connection) = builder.handshake(stream).await.unwrap();
    let tasks = Tasks::new();
    tasks.spawn(connection);
    (send, tasks)
}

fn http_2_get() -> ::http::Request<()> {
    ::http::Request::get("http://x/").body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn over_http_2_only_the_answer_that_is_not_taken_is_given_up() {
    let router = answering(|| Body::from(vec![b'x'; 400 << 10]));
    let (mut send, _tasks) = http_2(connect(router, 64 << 10), 2048).await;
    let (stuck, _) = send.send_request(http_2_get(), true).unwrap();
    let mut stuck = stuck.await.unwrap().into_body();
    let (taken, _) = send.send_request(http_2_get(), true).unwrap();
    let mut taken = taken.await.unwrap().into_body();
    let began = Instant::now();
    let take = async {
        let mut all = 0;
        while let Some(bytes) = taken.data().await {
            let size = bytes.unwrap().len();
            all += size;
            tokio::time::sleep(Duration::from_millis(size as u64)).await;
            taken.flow_control().release_capacity(size).unwrap();
        }
        all
    };
    let fail = async {
        let error = loop {
            if let Err(error) = stuck.data().await.unwrap() {
                break error;
            }
        };
        (error.reason(), began.elapsed().as_secs())
    };
    let (all, (reason, seconds)) = tokio::join!(take, fail);
    assert_eq!(all, 400 << 10);
    assert_eq!(reason, Some(h2::Reason::CANCEL));
    assert_eq!(seconds, 120);
    assert!(began.elapsed().as_secs() > 400);
}
