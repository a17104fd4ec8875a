//! The socket in the data directory: the way in for whoever owns the directory, also when every
//! password is lost. Nobody else may open it.

use crate::tasks::Tasks;
use crate::topology::OwnSocket;
use axum::Extension;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

const CONNECTIONS: usize = 16;
const LONGEST: Duration = Duration::from_secs(600);

/// In the data directory.
pub fn socket_in(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// Serves `router` until the node stops; each request says that it came this way.
pub fn serve(path: &Path, router: axum::Router, tasks: &Tasks) -> io::Result<()> {
    match std::fs::remove_file(path) {
        // Of a start before this one: the directory is locked, so nobody listens on it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let router = router.layer(Extension(OwnSocket));
    let (stop, owner) = (tasks.stop_token(), tasks.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, router, owner) => {}
        }
    });
    Ok(())
}

async fn accept(listener: UnixListener, router: axum::Router, tasks: Tasks) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection on the node's own socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_owner(&stream) {
            tracing::warn!("another user opened the node's own socket; refused");
            continue;
        }
        let (router, stop) = (router.clone(), tasks.stop_token());
        tasks.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(router);
            let served = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(LONGEST, served) => {}
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

/// The user that this process runs as, or root.
fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
