//! One direction of a session, from the socket its bytes come from to the one they go to.
//!
//! While its gate is *open* the program redirects and nothing is done here. Otherwise what arrives comes up to us, and is
//! received, held and sent on here: before the sockets are joined, right after (what had been queued comes up through the
//! program), and whenever the other side's send buffer is full. Three rules keep every byte in its place:
//!
//! 1. Nothing is sent here while something redirected is not in the other socket's send buffer yet: [`Flow::is_settled`].
//! 2. The gate opens only when every byte that came up was sent on; the program compares the numbers itself.
//! 3. After it was opened, one more receive, which takes the source's lock: what came up before the program saw the
//!    new number is found by it.

use std::io;

use super::Moved;
use super::socket::Socket;
use crate::bpf::Joints;

/// Bytes received at a time, and the most a direction holds.
pub const CHUNK: usize = 128 * 1024;
/// Chunks in a row before another session has its turn.
const TURNS: u32 = 8;

/// Where a direction stands after [`Flow::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// The program forwards; only the end of the stream is of interest.
    Open,
    /// Nothing can be done before one of the sockets is ready.
    Waiting,
    /// What was redirected is not sent yet. Nothing will tell when it is: look again soon.
    Unsettled,
    /// There is more to do, after the others' turn.
    More,
    /// The source has ended, and everything was sent on.
    Over,
}

/// Why a direction cannot go on.
#[derive(Debug)]
pub enum Broken {
    Source,
    Sink,
}

#[derive(Debug)]
pub struct Flow {
    source: Socket,
    sink: Socket,
    /// The direction's number in the ledger, once both sockets are joined.
    joined: Option<u32>,
    gate: Gate,
    /// Received and not sent yet: `held[sent..]`.
    held: Vec<u8>,
    sent: usize,
    /// The source has sent FIN and everything before it was received.
    ended: bool,
    /// Everything was sent on, and the FIN may be.
    pub over: bool,
    /// Bytes received here, in all and since the sockets were joined.
    received: u64,
    came_up: u64,
    /// Bytes the sink has been written, but for those redirected: see [`Socket::written`].
    written: u64,
    settled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Closed,
    /// Opened, and not looked behind yet (rule 3).
    Opened,
    Open,
}

impl Flow {
    /// `held` is sent before anything else.
    pub fn new(source: Socket, sink: Socket, held: Vec<u8>) -> Self {
        Self {
            source,
            sink,
            joined: None,
            gate: Gate::Closed,
            held,
            sent: 0,
            ended: false,
            over: false,
            received: 0,
            came_up: 0,
            written: 0,
            settled: true,
        }
    }

    /// Both sockets were just joined. `written` is what the sink had been written by then.
    pub fn join(&mut self, index: u32, written: u64) {
        (self.joined, self.written) = (Some(index), written);
    }

    pub fn is_empty(&self) -> bool {
        self.sent == self.held.len()
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn is_open(&self) -> bool {
        self.gate == Gate::Open
    }

    /// What was not sent.
    pub fn into_held(mut self) -> Vec<u8> {
        self.held.split_off(self.sent)
    }

    /// Bytes forwarded so far, or on their way through us. Those of `held` at the start are not counted.
    pub fn moved(&self, joints: &Joints) -> Moved {
        let redirected = self.joined.map_or(0, |index| joints.counts(index).0);
        Moved { redirected, copied: self.received }
    }

    /// Receives and sends until it must wait. `look` says that the source may have something to tell though the gate is
    /// open. `room` is scratch of [`CHUNK`] bytes.
    pub fn pump(&mut self, joints: &Joints, look: bool, room: &mut [u8]) -> Result<Pumped, Broken> {
        if self.over {
            return Ok(Pumped::Over);
        }
        if self.gate == Gate::Open {
            if !look && !self.has_come_up(joints) {
                return Ok(Pumped::Open);
            }
            self.gate = Gate::Opened;
        }
        for _ in 0..TURNS {
            if !self.is_empty() || self.ended {
                if !self.is_settled(joints) {
                    return Ok(Pumped::Unsettled);
                }
                if !self.send_held()? {
                    return Ok(Pumped::Waiting);
                }
                if self.ended {
                    self.over = true;
                    return Ok(Pumped::Over);
                }
            }
            match self.source.receive(room) {
                // Told the end of the stream, the kernel may yet have something on its way up.
                Ok(0) if self.has_come_up(joints) => return Ok(Pumped::Unsettled),
                Ok(0) => self.ended = true,
                Ok(length) => self.take(joints, &room[..length])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.open(joints) {
                    Some(state) => return Ok(state),
                    None => continue,
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Source),
            }
        }
        Ok(Pumped::More)
    }

    /// Whether the program has passed up what was not received here.
    pub fn has_come_up(&self, joints: &Joints) -> bool {
        self.joined.is_some_and(|index| joints.counts(index).1 != self.came_up)
    }

    /// The source has nothing more for us. `None`: the gate was just opened, receive once more.
    fn open(&mut self, joints: &Joints) -> Option<Pumped> {
        let Some(index) = self.joined else { return Some(Pumped::Waiting) };
        if self.has_come_up(joints) {
            // On its way up: the kernel's worker hands it over.
            self.gate = Gate::Closed;
            return Some(Pumped::Waiting);
        }
        if self.gate == Gate::Opened {
            self.gate = Gate::Open;
            return Some(Pumped::Open);
        }
        // Rule 2 holds: nothing is held, and all that came up was received.
        self.settled = false;
        self.gate = Gate::Opened;
        joints.arm(index, self.came_up);
        None
    }

    /// Sends what was just received, and holds what the sink does not take now.
    fn take(&mut self, joints: &Joints, bytes: &[u8]) -> Result<(), Broken> {
        self.received += bytes.len() as u64;
        if self.joined.is_some() {
            self.came_up += bytes.len() as u64;
        }
        self.gate = Gate::Closed;
        let sent = if self.is_settled(joints) { self.send(bytes)? } else { 0 };
        self.held.clear();
        self.held.extend_from_slice(&bytes[sent..]);
        self.sent = 0;
        Ok(())
    }

    /// Whether all of it was sent.
    fn send_held(&mut self) -> Result<bool, Broken> {
        while !self.is_empty() {
            let held = std::mem::take(&mut self.held);
            let sent = self.send(&held[self.sent..]);
            self.held = held;
            match sent? {
                0 => return Ok(false),
                sent => self.sent += sent,
            }
        }
        // An idle direction holds no memory.
        (self.held, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    /// How much of it the sink took; 0 if it takes nothing now.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        loop {
            match self.sink.send(bytes) {
                Ok(sent) => {
                    self.written += sent as u64;
                    return Ok(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Sink),
            }
        }
    }

    /// Rule 1. Once it is so, it stays so until the gate opens again: with the gate closed nothing is redirected. Must be
    /// asked after a receive that found the gate closed, or the end of the stream.
    fn is_settled(&mut self, joints: &Joints) -> bool {
        if !self.settled {
            let redirected = self.joined.map_or(0, |index| joints.counts(index).0);
            // A socket that has failed never settles; its failure is reported by itself.
            self.settled = self.sink.written().is_ok_and(|written| written >= self.written + redirected);
        }
        self.settled
    }
}
