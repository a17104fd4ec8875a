//! Accept loops: sockets in, connections to whoever speaks on them. Connections are bounded, and
//! a stop lets the requests under way end before the process does.

use crate::tasks::Tasks;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// For a client to send the head of a request. hyper counts an idle connection as one that is
/// about to, and clients keep those for up to 90 s: much less would cut a connection just as its
/// client begins the next request on it.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Connections of one listener; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// One listener with its connections.
pub struct Server {
    name: &'static str,
    address: SocketAddr,
    tasks: Tasks,
    cut: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
#[error("listen on {address} ({name}): choose another address, or stop what uses it")]
pub struct ListenError {
    name: &'static str,
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Takes the address, so that a wrong one is known before anything starts.
pub async fn bind(name: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError {
            name,
            address,
            source,
        })
}

impl Server {
    /// Serves HTTP/1.1, which is what clients speak without TLS.
    pub fn http(
        name: &'static str,
        listener: TcpListener,
        router: axum::Router,
    ) -> io::Result<Server> {
        Server::start(name, listener, move |stream, stop| {
            serve_http(stream, router.clone(), stop)
        })
    }

    /// Serves each connection with `serve`, which ends soon after its token is cancelled.
    pub fn start<F, S>(name: &'static str, listener: TcpListener, serve: S) -> io::Result<Server>
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream, CancellationToken) -> F + Send + 'static,
    {
        let address = listener.local_addr()?;
        let server = Server {
            name,
            address,
            tasks: Tasks::new(),
            cut: CancellationToken::new(),
        };
        let (tasks, cut) = (server.tasks.clone(), server.cut.clone());
        server.tasks.spawn(async move {
            tokio::select! {
                () = tasks.stopped() => {}
                () = accept(name, &listener, &tasks, &cut, serve) => {}
            }
        });
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, and waits for the requests under way; cuts what is left at the deadline.
    pub async fn stop(self, deadline: Duration) {
        if tokio::time::timeout(deadline, self.tasks.stop_and_wait())
            .await
            .is_err()
        {
            tracing::warn!(
                listener = self.name,
                "requests did not end in time and are cut off"
            );
            self.cut.cancel();
            self.tasks.stop_and_wait().await;
        }
    }
}

async fn accept<F, S>(
    name: &'static str,
    listener: &TcpListener,
    tasks: &Tasks,
    cut: &CancellationToken,
    serve: S,
) where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream, CancellationToken) -> F,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = slots
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly out of file descriptors: some close soon.
                tracing::warn!(listener = name, %error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(listener = name, %error, "a connection was gone before it was served");
            continue;
        }
        let connection = serve(stream, tasks.stop_token());
        let cut = cut.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }
}

async fn serve_http(stream: TcpStream, router: axum::Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;
    use tokio::sync::Notify;

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
        let server = Server::http("test", listener, router).unwrap();
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
        let server = Server::http("test", listener, router).unwrap();
        let url = format!("http://{}/", server.address());
        let tasks = Tasks::new();
        let answer = tasks.spawn(reqwest::get(url));
        begun.notified().await;
        server.stop(Duration::from_millis(10)).await;
        assert!(answer.await.unwrap().is_err());
    }
}
