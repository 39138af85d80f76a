//! A thread's io_uring as a small async runtime: operations, timers, tasks, and the loop that drives them.
//!
//! One system call submits all that the tasks asked for and waits for what comes next. An operation keeps what the
//! kernel may touch until it has completed, so its future may be dropped at any time; it is cancelled then.

mod accept;
mod bell;
mod connect;
mod driver;
mod engine;
mod operation;
mod receive;
mod send;
mod time;

pub use accept::Accepts;
pub use connect::connect;
pub use driver::block_on;
pub use engine::{ENGINE, Engine, Ring};
pub use receive::receive;
pub use send::send;
pub use time::{Sleep, sleep, sleep_until, timeout};

pub use tokio::task::spawn_local as spawn;
