//! What the integration tests share.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

pub mod local;
