//! How an operator looks at the process and steers it: HTTP over a Unix socket and, read-only, over TCP.
//!
//! `docs/admin.md` is the reference of its paths, `docs/metrics.md` that of the metrics.

pub mod api;
pub mod client;
mod clusters;
mod listen;
pub mod metrics;
mod routes;
mod snapshot;
#[cfg(test)]
mod tests;

pub use listen::{Admin, AdminError, Sockets, bind, serve};
pub use metrics::{Metrics, QueueOutcome};
