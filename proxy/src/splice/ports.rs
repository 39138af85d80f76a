//! Source ports of backend legs that may be spliced. After the hand-off the kernel no longer knows that a port is in use,
//! so it must never have given it out: the range is pgsplice's own (`splice.source_ports`), and a port rests after use.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgsplice_ebpf::flow::FlowKey;

use super::{address, key};

/// TIME_WAIT of whoever closed first (include/net/tcp.h, TCP_TIMEWAIT_LEN).
pub const REST: Duration = Duration::from_secs(60);

/// The ports of all (source, backend) pairs.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    pairs: Mutex<HashMap<Pair, Pool>>,
}

type Pair = (IpAddr, SocketAddr);

/// One in use; given back when dropped. Small: every session in the kernel has one.
#[derive(Debug)]
pub struct Port {
    /// Of what comes from the backend to it.
    key: FlowKey,
    owner: Weak<Ports>,
}

#[derive(Debug)]
struct Pool {
    /// The next that was never given out, and how many of them there are. The first is any of the range: a backend may
    /// still remember those that a process before us had.
    fresh: u16,
    left: u32,
    /// Given back, the longest-rested first.
    resting: VecDeque<(u16, Instant)>,
    /// Taken out of turn, by sessions of a process before us; they rest like any other.
    adopted: HashSet<u16>,
}

impl Ports {
    pub fn new(range: RangeInclusive<u16>) -> Arc<Self> {
        Arc::new(Self { range, pairs: Mutex::default() })
    }

    /// `None`: all are in use or at rest.
    pub fn take(self: &Arc<Self>, source: IpAddr, backend: SocketAddr, now: Instant) -> Option<Port> {
        let pair = (source, backend);
        let mut pairs = self.pairs.lock();
        let pool = pairs.entry(pair).or_insert_with(|| Pool::new(&self.range));
        let number = pool.take(&self.range, now)?;
        Some(Port { key: key(backend, SocketAddr::new(source, number)), owner: Arc::downgrade(self) })
    }

    /// One that a session of a process before us has. Also outside the range, which may have been another one then.
    pub fn adopt(self: &Arc<Self>, key: FlowKey) -> Port {
        let port = Port { key, owner: Arc::downgrade(self) };
        let mut pairs = self.pairs.lock();
        pairs.entry(port.pair()).or_insert_with(|| Pool::new(&self.range)).adopted.insert(port.number());
        port
    }

    pub fn has(&self, number: u16) -> bool {
        self.range.contains(&number)
    }

    /// One that a connection of before holds, or held not long ago.
    pub fn rest(self: &Arc<Self>, key: FlowKey) {
        drop(self.adopt(key));
    }
}

impl Port {
    pub fn key(&self) -> FlowKey {
        self.key
    }

    pub fn address(&self) -> SocketAddr {
        address(self.key.dst, self.key.dst_port)
    }

    fn number(&self) -> u16 {
        self.address().port()
    }

    fn pair(&self) -> Pair {
        (self.address().ip(), address(self.key.src, self.key.src_port))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let Some(owner) = self.owner.upgrade() else { return };
        if owner.range.contains(&self.number())
            && let Some(pool) = owner.pairs.lock().get_mut(&self.pair())
        {
            pool.resting.push_back((self.number(), Instant::now()));
        }
    }
}

impl Pool {
    fn new(range: &RangeInclusive<u16>) -> Self {
        let left = range.len() as u32;
        let first = RandomState::new().hash_one(()) % u64::from(left.max(1));
        Self { fresh: range.start() + first as u16, left, resting: VecDeque::new(), adopted: HashSet::new() }
    }

    fn take(&mut self, range: &RangeInclusive<u16>, now: Instant) -> Option<u16> {
        while self.left > 0 {
            let number = self.fresh;
            self.fresh = if number == *range.end() { *range.start() } else { number + 1 };
            self.left -= 1;
            if !self.adopted.contains(&number) {
                return Some(number);
            }
        }
        let (number, since) = *self.resting.front()?;
        if now.saturating_duration_since(since) < REST {
            return None;
        }
        self.resting.pop_front();
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn backend(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 1, last], 6432))
    }

    /// All that can be had now, in order, and kept.
    fn all(ports: &Arc<Ports>, now: Instant) -> Vec<Port> {
        let mut all: Vec<Port> = std::iter::from_fn(|| ports.take(SOURCE, backend(1), now)).collect();
        all.sort_by_key(Port::number);
        all
    }

    fn numbers(ports: &[Port]) -> Vec<u16> {
        ports.iter().map(Port::number).collect()
    }

    #[test]
    fn a_port_rests_a_minute_and_every_pair_has_its_own() {
        let (ports, now) = (Ports::new(2000..=2003), Instant::now());
        let mut taken = all(&ports, now);
        assert_eq!(numbers(&taken), [2000, 2001, 2002, 2003]);
        assert!(ports.take(SOURCE, backend(2), now).is_some());
        let given_back = taken.remove(2).number();
        assert!(ports.take(SOURCE, backend(1), now).is_none());
        let later = Instant::now() + REST;
        assert_eq!(ports.take(SOURCE, backend(1), later).unwrap().number(), given_back);
    }

    #[test]
    fn the_first_is_any() {
        let first = || Ports::new(2000..=2999).take(SOURCE, backend(1), Instant::now()).unwrap().number();
        let firsts: HashSet<u16> = (0..20).map(|_| first()).collect();
        assert!(firsts.len() > 1, "{firsts:?}");
    }

    #[test]
    fn what_a_connection_before_us_has_rests_first() {
        let (ports, now) = (Ports::new(2000..=2001), Instant::now());
        ports.rest(key(backend(1), SocketAddr::new(SOURCE, 2000)));
        let taken = all(&ports, now);
        assert_eq!(numbers(&taken), [2001]);
        assert_eq!(ports.take(SOURCE, backend(1), Instant::now() + REST).unwrap().number(), 2000);
    }

    #[test]
    fn what_a_session_before_us_has_is_not_given_out() {
        let (ports, now) = (Ports::new(2000..=2002), Instant::now());
        let adopted = ports.adopt(key(backend(1), SocketAddr::new(SOURCE, 2001)));
        let _far = ports.adopt(key(backend(1), SocketAddr::new(SOURCE, 9000)));
        let taken = all(&ports, now);
        assert_eq!(numbers(&taken), [2000, 2002]);
        drop(adopted);
        assert_eq!(ports.take(SOURCE, backend(1), Instant::now() + REST).unwrap().number(), 2001);
    }

    #[test]
    fn the_last_port_of_all_is_no_overflow() {
        let (ports, now) = (Ports::new(65_535..=65_535), Instant::now());
        let _last = ports.take(SOURCE, backend(1), now).unwrap();
        assert!(ports.take(SOURCE, backend(1), now).is_none());
    }
}
