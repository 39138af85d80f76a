//! The hand-off: a session's two TCP connections become two flows that a program in the kernel rewrites into each other.
//!
//! WATCH (before) → HOLD → LIVE, with the backend's last reply held in our hands throughout, so that by the protocol
//! neither side speaks:
//! 1. [`Splice::qualify`]: both legs were seen on attached interfaces and agree on everything that cannot be rewritten.
//! 2. [`Splice::hold`]: the numbers are read, the flows installed; payload is now dropped, and so is, by a filter on both
//!    sockets, what has already passed the program. What was received in between shows in the numbers.
//! 3. [`hold::Holding::go_live`]: nothing was received: the held bytes are put into the socket, the flows forward, and the
//!    socket is let go. From the one moment on the kernel has both, whatever becomes of this process.
//! 4. [`Live::release`]: once the client has acknowledged them, both sockets end without a packet.
//!
//! Every error before step 3 leaves the session as it was, on sockets that go on.

mod flows;
mod hold;
mod live;
mod qualify;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

pub use live::Live;

use super::watch::BackendPort;
use super::{Splice, Why};
use crate::config::SpliceRoad;
use crate::ring;
use crate::session::{SessionRecord, Termination};

/// How long a packet that passed the program before the flows were there may take to reach the sockets' filter. It is in
/// the hands of another CPU's interrupt then.
const GRACE: Duration = Duration::from_millis(1);

/// The two sockets of a session, connected, and untouched by anybody else.
#[derive(Clone, Copy, Debug)]
pub struct Legs<'a> {
    pub client: BorrowedFd<'a>,
    pub backend: BorrowedFd<'a>,
}

/// How an attempt ended.
pub enum Attempt {
    Live(Live),
    /// Nothing has changed.
    Stay(Why),
    /// A side was reset meanwhile.
    Dead(Termination),
}

impl Splice {
    /// `held` is less than one segment and was not sent to the client. `port`: the backend leg's, if it is one of ours.
    /// `listener` is its id in the guard's maps. `record`: who it is, for a process after us.
    pub async fn hand_off(
        self: &Arc<Self>,
        legs: Legs<'_>,
        held: &[u8],
        wanted: SpliceRoad,
        port: Option<&BackendPort>,
        listener: Option<u32>,
        record: &SessionRecord,
    ) -> Attempt {
        let Some(port) = port else { return Attempt::Stay(Why::NoPort) };
        let plan = match self.qualify(legs, held.len(), wanted, port) {
            Ok(plan) => plan,
            Err(Stay::Why(why)) => return Attempt::Stay(why),
            // A side has reset the session; whoever reads next will see.
            Err(Stay::Error(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => return Attempt::Stay(Why::Busy),
            Err(Stay::Error(error)) => return failed("qualify", &error),
        };
        let holding = match self.hold(legs, plan, held.len(), listener, record) {
            Ok(holding) => holding,
            Err(Stay::Why(why)) => return Attempt::Stay(why),
            Err(Stay::Error(error)) => return failed("hold", &error),
        };
        ring::sleep(GRACE).await;
        holding.go_live(held)
    }
}

/// Why an attempt changed nothing.
enum Stay {
    Why(Why),
    Error(io::Error),
}

impl From<Why> for Stay {
    fn from(why: Why) -> Self {
        Self::Why(why)
    }
}

impl From<io::Error> for Stay {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

fn failed(step: &str, error: &io::Error) -> Attempt {
    tracing::warn!("hand-off, {step}: {error}");
    Attempt::Stay(Why::Error)
}
