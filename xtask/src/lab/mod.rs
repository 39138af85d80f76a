//! The lab: real servers on hosts that are namespaces of this machine, joined by bridges. `net` makes the network,
//! `host` runs things on it, `fault` breaks it, `cluster` puts a PostgreSQL data centre on it.

mod cli;
pub mod cluster;
mod fault;
mod host;
mod id;
pub mod interrupt;
mod net;
mod ns;
mod service;
mod state;
mod wait;

pub use cli::{Args, default_id, run, say};
pub use cluster::{Lab, LabSpec, Member, Postgres, Proxy, Store, Timings};
pub use host::Host;
pub use id::unique_id;
pub use net::{HostSpec, Net, NetSpec};
pub use service::{Program, Service};
pub use wait::{until, until_ok};
