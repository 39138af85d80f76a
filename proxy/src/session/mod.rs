//! A session's life, a file a step: accept → startup → pick → connect → handshake → relay → end.

pub mod record;

pub use record::*;
