//! Who is alive: active probes of every backend, and marks from the connects of real sessions.
//!
//! Whatever is found goes into [`Backend::set_health`](crate::pool::Backend::set_health) and is told to the pool with
//! [`Pool::touch`](crate::pool::Pool::touch); eligibility itself is the pool's business.

pub mod check;
pub mod passive;
pub mod prober;
pub mod track;

pub use passive::Passive;
pub use prober::Prober;
