//! The roads a session may take once its handshake is over, a room each.
//!
//! [`relay`] is user space over io_uring and works for every session on every kernel that runs us.

pub mod model;
pub mod relay;

use std::fmt;

/// What forwards a session, as in access lines and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Road {
    /// The XDP program, on both legs' interfaces.
    Xdp,
    /// The TC program, on at least one of them.
    Tc,
    /// The kernel's sockets, joined by an sk_skb program.
    Sockmap,
    /// User space, over io_uring.
    Relay,
}

impl Road {
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Tc, Self::Sockmap, Self::Relay];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Sockmap => "sockmap",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
