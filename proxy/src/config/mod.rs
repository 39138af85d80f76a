//! Configuration: TOML in, a typed, validated and defaulted [`Config`] out, and the difference between two of them.
//!
//! Nothing outside this room sees TOML. Every error names file, line, key, what was found and what was expected.

mod ip_net;
pub mod model;

pub use ip_net::IpNetError;
pub use model::*;
