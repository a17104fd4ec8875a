//! The `roadstead` binary: the command line does it all.

use std::process::ExitCode;

/// glibc's took a fifth of what a push of a manifest costs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    roadstead::cli::main()
}
