//! Whether the kernel forwards packets that come in by an interface: XDP asks its routing, which refuses where it does not.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Forwarding(Mutex<HashMap<(u32, bool), (bool, Instant)>>);

impl Forwarding {
    /// For IPv4 or IPv6.
    pub fn is_on(&self, ifindex: u32, v4: bool) -> bool {
        let mut known = self.0.lock();
        match known.get(&(ifindex, v4)) {
            Some((on, since)) if since.elapsed() < FRESH => *on,
            _ => {
                let on = ask(ifindex, v4).unwrap_or(false);
                known.insert((ifindex, v4), (on, Instant::now()));
                on
            }
        }
    }
}

/// ip-sysctl.rst, `conf/interface/forwarding`.
fn ask(ifindex: u32, v4: bool) -> Option<bool> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call asks for.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the kernel has written a terminated string into the buffer.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().ok()?;
    let family = if v4 { "ipv4" } else { "ipv6" };
    let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{name}/forwarding")).ok()?;
    Some(text.trim() != "0")
}
