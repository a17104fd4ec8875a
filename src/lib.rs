//! Roadstead: a container registry that lives in several regions at once.
//!
//! ```text
//!      clients                                  other regions
//!         │ OCI HTTP                                 │ gRPC and HTTP
//!    ┌────▼────┐  ┌───────┐  ┌───────┐          ┌────▼────┐
//!    │  http/  │  │ api/  │  │ cli/  │          │  rpc/   │   edges: wire in, wire out, no decisions
//!    └────┬────┘  └───┬───┘  └───────┘          └──┬──┬───┘
//!         │        ┌──▼─────────┐                  │  │
//!         │        │  cluster/  │◄─────────────────┘  │       who is in; how many copies
//!         │        └─────┬──────┘                     │
//!    ┌────▼──────────────▼──┐                         │
//!    │      registry/       │◄────────────────────────┤       what a registry does; knows no HTTP
//!    └────┬─────────────┬───┘                         │
//!    ┌────▼────┐   ┌────▼─────┐                       │
//!    │metadata/│   │  blobs/  │◄──────────────────────┘       what exists (Raft, sled); the bytes
//!    └────┬────┘   └────┬─────┘
//!    ┌────▼────┐        │
//!    │ peers/  │        │                                     calls to other nodes
//!    └────┬────┘        │
//!    ┌────▼─────────────▼─────────────────┐
//!    │ oci/  topology  clock  budget  tasks │                   pure types
//!    └────────────────────────────────────┘
//! ```
//!
//! `node/` is outside the stack: the only module that sees every layer. `docs/architecture.md` has
//! the flows and the named invariants; `cluster-tests/layers.rs` holds the direction of imports.

pub mod access;
pub mod api;
pub mod audit;
pub mod blobs;
pub mod budget;
pub mod certs;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod durability;
pub mod http;
pub mod login;
pub mod metadata;
pub mod node;
pub mod oci;
pub mod ops;
pub mod peers;
pub mod policy;
pub mod registry;
pub mod request_id;
pub mod rpc;
pub mod server;
pub mod spelling;
pub mod stderr;
pub mod tasks;
pub mod telemetry;
pub mod topology;

/// Generated from `proto/`.
pub mod proto {
    #[allow(clippy::all, clippy::unwrap_used)]
    pub mod state {
        pub mod v1 {
            tonic::include_proto!("roadstead.state.v1");
        }
    }
    #[allow(clippy::all, clippy::unwrap_used)]
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("roadstead.peer.v1");
        }
    }
}
