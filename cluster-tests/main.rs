//! Tests with real processes, each named for what an operator fears.

// Helpers of tests are tests too: a panic is how they fail.
#![allow(clippy::unwrap_used)]

mod access;
mod api;
mod bad_input;
mod behind_tls;
mod clients;
mod concurrent_pushes;
mod conformance;
mod credentials;
mod dev_command;
mod freshness;
mod full_disk;
mod harness;
mod hostile;
mod joining;
mod lazy_fetch;
mod leader_loss;
mod operator;
mod passed_on;
mod policies;
mod push_pull;
mod region_loss;
mod request_log;
mod restart;
mod slow_link;
mod uploads;
