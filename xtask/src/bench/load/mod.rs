//! Our own load generator: a server that speaks just enough PostgreSQL, and clients that keep it busy.
//!
//! Both run as hidden subcommands of xtask inside the bench's network namespaces. The messages are real PostgreSQL
//! ones, so that a proxy that looks for the handshake and for ReadyForQuery finds them; a plain TCP proxy does not care.

pub mod client;
pub mod cpu;
pub mod histogram;
mod pattern;
pub mod server;
pub mod window;
pub mod wire;
