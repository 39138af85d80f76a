//! What XDP must know of an interface: whether the kernel forwards packets that come in by it (XDP asks its routing, which
//! refuses where it does not), and whether there is a device behind it.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bpf::driver;

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Forwarding {
    forwards: Answers<(u32, bool)>,
    is_virtual: Answers<u32>,
}

type Answers<K> = Mutex<HashMap<K, (bool, Instant)>>;

impl Forwarding {
    /// For IPv4 or IPv6.
    pub fn is_on(&self, ifindex: u32, v4: bool) -> bool {
        fresh(&self.forwards, (ifindex, v4), || {
            let family = if v4 { "ipv4" } else { "ipv6" };
            let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", name(ifindex)?);
            // ip-sysctl.rst, `conf/interface/forwarding`.
            Some(fs::read_to_string(path).ok()?.trim() != "0")
        })
    }

    /// A veth, a bridge, a tunnel.
    pub fn is_virtual(&self, ifindex: u32) -> bool {
        fresh(&self.is_virtual, ifindex, || Some(driver(&name(ifindex)?) == "none"))
    }
}

/// The answer of a second ago at most; one that cannot be had is a no.
fn fresh<K: Copy + Eq + Hash>(answers: &Answers<K>, key: K, ask: impl FnOnce() -> Option<bool>) -> bool {
    let mut known = answers.lock();
    match known.get(&key) {
        Some((answer, since)) if since.elapsed() < FRESH => *answer,
        _ => {
            let answer = ask().unwrap_or(false);
            known.insert(key, (answer, Instant::now()));
            answer
        }
    }
}

fn name(ifindex: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call asks for.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the kernel has written a terminated string into the buffer.
    Some(unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().ok()?.to_owned())
}
