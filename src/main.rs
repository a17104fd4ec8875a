//! The `roadstead` binary: the command line does it all.

use std::process::ExitCode;

fn main() -> ExitCode {
    roadstead::cli::main()
}
