//! The roads a session may take once its handshake is over, a room each.
//!
//! Today there is one: [`relay`], user space over io_uring, which works for every session on every kernel that runs us.

pub mod relay;
