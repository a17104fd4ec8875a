//! Programs of others that `.ci/install` puts in place, beside the Debian packages on the PATH.

use super::images::must;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Where `go install` puts programs.
pub fn go(program: &str) -> Command {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    let bin = BIN.get_or_init(|| {
        let env = |name| must(Command::new("go").args(["env", name]));
        match env("GOBIN") {
            own if !own.is_empty() => PathBuf::from(own),
            _ => PathBuf::from(env("GOPATH")).join("bin"),
        }
    });
    Command::new(bin.join(program))
}
