//! The two sides of a session, for the engines in user space that keep something of each.

use crate::session::Termination;

/// Seconds of an engine's own clock.
pub type Second = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client = 0,
    Backend = 1,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }

    /// How a session ends that this side has closed, or reset.
    pub fn closed(self) -> Termination {
        match self {
            Self::Client => Termination::ClientClosed,
            Self::Backend => Termination::BackendClosed,
        }
    }

    pub fn reset(self) -> Termination {
        match self {
            Self::Client => Termination::ClientReset,
            Self::Backend => Termination::BackendReset,
        }
    }
}
