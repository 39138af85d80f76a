//! The first packets of the PostgreSQL protocol, and as much of the rest as a proxy must follow: where a message ends,
//! which one asks the client for something, which key cancels, and how to say no.
//!
//! Facts are from the PostgreSQL documentation, "Frontend/Backend Protocol", and `src/include/libpq/pqcomm.h`.

pub mod cancel;
pub mod error;
pub mod frame;
pub mod startup;
