//! A session's life between a client and a backend that the test plays byte by byte.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod bytes;
mod login;
mod many;
mod queue;
mod steering;

use std::net::SocketAddr;

use pgsplice_tests::local::Proxy;

/// No probe: the fake backends see sessions only, and are up until a session fails to reach them.
const NO_PROBE: &str = "probe.kind = \"none\"\npassive.failures = 0";

fn through(backends: &[SocketAddr]) -> Proxy {
    let proxy = Proxy::between(backends, NO_PROBE, "");
    proxy.wait_candidates(backends.len() as u64);
    proxy
}
