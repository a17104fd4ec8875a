# `just check` never writes; `just fix` does; `just long NAME` runs the large counts.

default:
    @just --list

# Everything that CI runs
check:
    .ci/install
    .ci/test

# Format, and take clippy's mechanical suggestions
fix:
    cargo fmt
    cargo fmt --manifest-path fuzz/Cargo.toml
    cargo clippy --fix --allow-dirty --all-targets --quiet

# Three regions on this machine
up:
    cargo run --release -- dev

# The large counts of a check; the output goes to docs/evidence/NAME.txt, to be committed
long NAME:
    .ci/long {{NAME}}

# Speed beside nginx and docker-registry; `just bench pull push` runs some rows only
bench *ROWS:
    cargo bench --locked --quiet --bench speed -- {{ROWS}}
