//! Which of this host's addresses a connection to a backend starts from. It must be known before the connect, for the
//! leg is watched from its first packet on.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an answer of the routing table is used. A wrong one costs a retry, not a session.
const FRESH: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Sources(Mutex<HashMap<IpAddr, (IpAddr, Instant)>>);

impl Sources {
    /// `None`: there is no route.
    pub fn towards(&self, backend: IpAddr) -> Option<IpAddr> {
        let mut known = self.0.lock();
        if let Some((source, since)) = known.get(&backend)
            && since.elapsed() < FRESH
        {
            return Some(*source);
        }
        let source = ask(backend).ok()?;
        known.insert(backend, (source, Instant::now()));
        Some(source)
    }

    /// A connect from there failed: ask again.
    pub fn forget(&self, backend: IpAddr) {
        self.0.lock().remove(&backend);
    }
}

/// connect(2) on a UDP socket sends nothing and chooses the source address as a TCP connect would.
fn ask(backend: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if backend.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((backend, 9))?;
    Ok(socket.local_addr()?.ip())
}
