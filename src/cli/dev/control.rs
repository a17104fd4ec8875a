//! How `dev status`, `dev kill` and `dev start` reach the `dev` that runs: one line of JSON each
//! way, over a socket in its data directory, which only its owner can open.

use super::plan::Region;
use super::plan::quoted;
use crate::api::types::ErrorBody;
use crate::cli::output;
use crate::cli::output::Failure;
use crate::tasks::Tasks;
use serde::Deserialize;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

const SOCKET: &str = "dev.sock";
/// Longer than any request.
const MAX_REQUEST: u64 = 4096;
const READ: Duration = Duration::from_secs(5);
/// A start is answered when the region serves again.
const ANSWER: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    Status,
    Kill { region: String },
    Start { region: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub regions: Vec<RegionState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionState {
    pub name: String,
    pub state: Running,
    pub registry: String,
    pub peer: String,
    pub ops: String,
    pub pid: Option<u32>,
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Running {
    Running,
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Error(ErrorBody),
    State(State),
}

/// A request, and where its answer goes.
pub struct Asked {
    pub request: Request,
    pub reply: oneshot::Sender<Result<State, Failure>>,
}

impl RegionState {
    pub fn new(region: &Region, pid: Option<u32>) -> RegionState {
        RegionState {
            name: region.name.clone(),
            state: if pid.is_some() {
                Running::Running
            } else {
                Running::Down
            },
            registry: region.url(),
            peer: format!("http://127.0.0.1:{}", region.peer),
            ops: format!("http://127.0.0.1:{}", region.ops),
            pid,
            command: region.command.clone(),
        }
    }
}

impl State {
    pub fn render(&self) -> String {
        let row = |region: &RegionState| {
            let state = match region.state {
                Running::Running => "running",
                Running::Down => "down",
            };
            let pid = region.pid.map_or("-".to_owned(), |pid| pid.to_string());
            vec![
                region.name.clone(),
                state.to_owned(),
                pid,
                region.registry.clone(),
                region.ops.clone(),
            ]
        };
        let header = ["REGION", "STATE", "PID", "REGISTRY", "OPS"];
        output::table(&header, self.regions.iter().map(row).collect())
    }
}

/// Asks the `dev` that runs on this data.
pub async fn ask(dir: &Path, request: &Request) -> Result<State, Failure> {
    let silent = |_| {
        Failure::no_server(
            format!("no `roadstead dev` runs on the data in {}", dir.display()),
            format!("start it with: roadstead dev --data-dir {}", quoted(dir)),
        )
    };
    let (path, _open) = socket_path(dir).map_err(silent)?;
    let mut stream = UnixStream::connect(path).await.map_err(silent)?;
    let exchange = async {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(serde_json::from_str(&answer)?)
    };
    match tokio::time::timeout(ANSWER, exchange).await {
        Ok(Ok(Answer::State(state))) => Ok(state),
        Ok(Ok(Answer::Error(body))) => Err(Failure::from_body(body)),
        Ok(Err(error)) => Err(Failure::failed("ask the `roadstead dev` that runs", &error)),
        Err(_) => Err(Failure::limit(
            "the `roadstead dev` that runs did not answer in time",
            "look into the logs of its regions, DIR/rN/log",
        )),
    }
}

/// Hands each request to `asked`, until the tasks are stopped.
pub fn listen(dir: &Path, asked: mpsc::Sender<Asked>, tasks: &Tasks) -> io::Result<()> {
    // The lock on the directory is held, so what is there was left by a `dev` that was killed.
    match std::fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (path, _open) = socket_path(dir)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(dir.join(SOCKET), std::fs::Permissions::from_mode(0o600))?;
    let owner = tasks.clone();
    tasks.spawn(async move {
        loop {
            let stream = tokio::select! {
                () = owner.stopped() => return,
                accepted = listener.accept() => accepted,
            };
            match stream {
                Ok((stream, _)) => drop(owner.spawn(serve(stream, asked.clone(), owner.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn serve(mut stream: UnixStream, asked: mpsc::Sender<Asked>, tasks: Tasks) {
    let result = tokio::select! {
        () = tasks.stopped() => return,
        result = handle(&mut stream, &asked) => result,
    };
    let answer = match result {
        Ok(state) => Answer::State(state),
        Err(failure) => Answer::Error(failure.body()),
    };
    let text = serde_json::to_string(&answer).unwrap_or_default();
    // Whoever asked may have left.
    let _ = stream.write_all(text.as_bytes()).await;
}

async fn handle(stream: &mut UnixStream, asked: &mpsc::Sender<Asked>) -> Result<State, Failure> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(MAX_REQUEST));
    let read = tokio::time::timeout(READ, reader.read_line(&mut line)).await;
    let request = match read {
        Ok(Ok(_)) => serde_json::from_str(&line).ok(),
        _ => None,
    };
    let Some(request) = request else {
        let next = "use `roadstead dev status`, `kill` or `start` of the same version";
        return Err(Failure::refused("the request was not understood", next));
    };
    let stopping = || Failure::limit("`roadstead dev` is stopping", "start it again");
    let (reply, answer) = oneshot::channel();
    asked
        .send(Asked { request, reply })
        .await
        .map_err(|_| stopping())?;
    answer.await.unwrap_or_else(|_| Err(stopping()))
}

/// A socket's address holds about a hundred bytes, which the path to a data directory may exceed:
/// then it is reached through the open directory, whose file must live as long as the address is
/// used.
fn socket_path(dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(SOCKET);
    if path.as_os_str().len() < 100 {
        return Ok((path, None));
    }
    let open = File::open(dir)?;
    Ok((
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd())),
        Some(open),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn round_trip(dir: &Path) {
        let tasks = Tasks::new();
        let (sender, mut receiver) = mpsc::channel(1);
        listen(dir, sender, &tasks).unwrap();
        tasks.spawn(async move {
            while let Some(asked) = receiver.recv().await {
                let answer = match asked.request {
                    Request::Status => Ok(State {
                        regions: Vec::new(),
                    }),
                    _ => Err(Failure::refused("no", "do not")),
                };
                let _ = asked.reply.send(answer);
            }
        });
        assert_eq!(
            ask(dir, &Request::Status).await,
            Ok(State {
                regions: Vec::new()
            })
        );
        let kill = Request::Kill {
            region: "r1".to_owned(),
        };
        assert_eq!(ask(dir, &kill).await, Err(Failure::refused("no", "do not")));
        tasks.stop_and_wait().await;
    }

    #[tokio::test]
    async fn a_request_is_answered_with_the_state_or_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        round_trip(dir.path()).await;
        // The socket of an earlier run is in nobody's way.
        round_trip(dir.path()).await;
    }

    #[tokio::test]
    async fn a_deep_directory_works_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        round_trip(&deep).await;
    }

    #[tokio::test]
    async fn without_a_dev_there_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let told = ask(dir.path(), &Request::Status).await.unwrap_err();
        assert!(
            told.message().contains("no `roadstead dev` runs"),
            "{told:?}"
        );
    }
}
