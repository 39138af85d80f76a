//! pgsplice: a Layer 4 proxy appliance for PostgreSQL.
//!
//! User space accepts a client, waits out the PostgreSQL handshake, picks a healthy backend from what the cluster's
//! store says, and forwards the session. `docs/architecture.md` walks through the rooms of this library.

pub mod admin;
pub mod agent;
pub mod bpf;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod doctor;
mod ethtool;
pub mod guard;
pub mod handover;
pub mod health;
pub mod log;
mod netlink;
pub mod pg;
pub mod pool;
pub mod proxy;
pub mod ring;
pub mod session;
mod sock_diag;
pub mod splice;
pub mod switchover;
