//! How an operator looks at the process and steers it: HTTP over a Unix socket and, read-only, over TCP.

pub mod metrics;

pub use metrics::{Metrics, QueueOutcome};
