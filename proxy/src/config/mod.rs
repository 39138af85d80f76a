//! Configuration: TOML in, a typed, validated and defaulted [`Config`] out, and the difference between two of them.
//!
//! Nothing outside this room sees TOML. Every error names file, line, key, what was found and what was expected.

pub mod model;

pub use model::*;
