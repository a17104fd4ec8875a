//! Accept loops: sockets in, connections to whoever speaks on them. Connections are bounded, in
//! all and for each client, and a stop lets the requests under way end before the process does.
//!
//! What must stay true: no client decides how long it is waited for or how much is kept for it,
//! and none is blamed for what this node itself takes (patience.rs).

mod body;
mod clients;
mod framing;
pub mod local;
mod patience;
mod serve;
mod socket;
#[cfg(test)]
mod tests;

pub use clients::Limits;

use crate::certs::ListenerTls;
use crate::tasks::Tasks;
use clients::Clients;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

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

/// What whoever serves a connection is told of it.
#[derive(Clone)]
pub struct Connection {
    pub client: SocketAddr,
    is_secure: bool,
    /// Cancelled: the requests under way may end, and no more may begin.
    pub stop: CancellationToken,
    cut: CancellationToken,
    tasks: Tasks,
    /// For those over HTTP/2: of this client, and of all.
    requests_of_client: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

impl Server {
    /// Serves HTTP/1.1, and HTTP/2 to clients that begin with it; over TLS, if there is a
    /// certificate.
    pub fn http(
        name: &'static str,
        listener: TcpListener,
        limits: Limits,
        tls: Option<ListenerTls>,
        router: axum::Router,
    ) -> io::Result<Server> {
        Server::start(name, listener, limits, move |stream, connection| {
            serve::either(stream, tls.clone(), router.clone(), connection)
        })
    }

    /// Serves each connection with `serve`, which ends soon after its `stop` is cancelled.
    pub fn start<F, S>(
        name: &'static str,
        listener: TcpListener,
        limits: Limits,
        serve: S,
    ) -> io::Result<Server>
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream, Connection) -> F + Send + 'static,
    {
        let address = listener.local_addr()?;
        let server = Server {
            name,
            address,
            tasks: Tasks::new(),
            cut: CancellationToken::new(),
        };
        let accepting = Accepting {
            name,
            listener,
            limits,
            tasks: server.tasks.clone(),
            cut: server.cut.clone(),
        };
        let tasks = server.tasks.clone();
        server.tasks.spawn(async move {
            tokio::select! {
                () = tasks.stopped() => {}
                () = accepting.run(serve) => {}
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

struct Accepting {
    name: &'static str,
    listener: TcpListener,
    limits: Limits,
    tasks: Tasks,
    cut: CancellationToken,
}

impl Accepting {
    async fn run<F, S>(self, serve: S)
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream, Connection) -> F,
    {
        let name = self.name;
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        let requests = Arc::new(Semaphore::new(self.limits.connections));
        let clients = Arc::new(Clients::new(name, self.limits));
        loop {
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let (stream, client) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly out of file descriptors: some close soon.
                    tracing::warn!(listener = name, %error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(entered) = clients.enter(client.ip()) else {
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(listener = name, %error, "a connection was gone before it was served");
                continue;
            }
            let served = serve(
                stream,
                Connection {
                    client,
                    is_secure: false,
                    stop: self.tasks.stop_token(),
                    cut: self.cut.clone(),
                    tasks: self.tasks.clone(),
                    requests_of_client: entered.requests.clone(),
                    requests: requests.clone(),
                },
            );
            let cut = self.cut.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = served => {}
                    () = cut.cancelled() => {}
                }
                drop((slot, entered));
            });
        }
    }
}

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::framing::Framing;
}
