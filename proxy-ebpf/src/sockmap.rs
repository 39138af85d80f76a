//! The maps of the sockmap road: two joined sockets a session, and a ledger of what each direction has forwarded.
//!
//! They are not pinned: the sessions they serve end with the process that made them, so unlike what stands in [`crate::flow`]
//! this is no format that another version must read. The program is an object of its own for the same reason.
//!
//! A socket's index is twice its session's slot, plus 1 on the backend's side. A *direction* is named by the socket its
//! bytes come from; `index ^ 1` is where they go.

/// The SK_SKB program, `sk_skb/stream_verdict` by its section, attached as a verdict without a parser.
pub const PROGRAM: &str = "forward";
/// Sockmap: index → socket.
pub const SOCKETS: &str = "SOCKETS";
/// Hash: socket cookie → index.
pub const COOKIES: &str = "COOKIES";
/// Array of [`Direction`], by index; mapped into user space.
pub const LEDGER: &str = "LEDGER";
/// Ring buffer of `u32`: indices of directions whose gate has just closed.
pub const CLOSED: &str = "CLOSED";

/// Sessions unless the loader says otherwise: half the entries of `SOCKETS`, `COOKIES` and `LEDGER`.
pub const DEFAULT_SESSIONS: u32 = 4096;
/// Bytes one record takes in the ring buffer: a header of 8 and the index, rounded up.
pub const CLOSED_BYTES: u32 = 16;

/// Where the kernel keeps what the program looks at, in bytes from the start of `struct tcp_sock`. Set at load from the
/// running kernel's own type information.
pub const OFFSET_WRITE_SEQ: &str = "WRITE_SEQ";
pub const OFFSET_WMEM_QUEUED: &str = "WMEM_QUEUED";
pub const OFFSET_SNDBUF: &str = "SNDBUF";

/// One direction. The first cache line is user space's to write, the second the program's.
///
/// The *gate* is open while `passed == armed`: then the program redirects to the other socket. Otherwise, and once there
/// is no room at the other socket, it passes up, which adds to `passed` and so keeps the gate closed until user space has
/// sent on every byte passed and says so by setting `armed` to their number. Hence no byte overtakes another, and none
/// needs a lock: the program runs under the source socket's.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// [`NEVER`] keeps the gate closed.
    pub armed: u64,
    pub pad: [u64; 7],
    /// Bytes redirected.
    pub redirected: u64,
    /// Bytes passed up.
    pub passed: u64,
    /// The `armed` that the numbers below belong to.
    pub phase: u64,
    /// The sink's `write_seq` once it has taken everything redirected.
    pub expected_seq: u32,
    /// What is redirected and not written yet was counted in two parts: skbs up to this number, and those after it.
    pub mark_seq: u32,
    pub before_mark: u32,
    pub after_mark: u32,
    pub pad2: [u64; 3],
}

pub const NEVER: u64 = u64::MAX;

impl Direction {
    /// Gate closed, nothing counted.
    pub const NEW: Self = Self {
        armed: NEVER,
        pad: [0; 7],
        redirected: 0,
        passed: 0,
        phase: NEVER,
        expected_seq: 0,
        mark_seq: 0,
        before_mark: 0,
        after_mark: 0,
        pad2: [0; 3],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_writer_has_a_cache_line_of_its_own() {
        assert_eq!(size_of::<Direction>(), 128);
        assert_eq!(core::mem::offset_of!(Direction, redirected), 64);
    }
}
