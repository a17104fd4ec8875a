//! Keeping the whole in order: who is in, how many copies there are.

pub mod enrolling;
pub mod membership;
pub mod replication;
