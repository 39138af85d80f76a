//! The kernel, what this process may ask of it, and the roads that follow.

use super::{Check, sysctl};
use crate::config::Config;

/// capability(7)
const CAPABILITIES: [(u32, &str); 6] = [
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

pub fn examine(config: &Config) -> Vec<Check> {
    vec![version(), capabilities(config), io_uring()]
}

fn version() -> Check {
    match sysctl("kernel/osrelease") {
        Some(release) => Check::ok("kernel", release),
        None => {
            Check::warn("kernel", "/proc/sys is not readable", "mount /proc; without it most of this report is blind")
        }
    }
}

fn capabilities(config: &Config) -> Check {
    const NAME: &str = "capabilities";
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    let held: Vec<&str> = CAPABILITIES.iter().filter(|(bit, _)| has(*bit)).map(|(_, name)| *name).collect();
    let found = if held.is_empty() { "none of those that matter".to_owned() } else { held.join(" ") };
    let may_guard = has(NET_ADMIN) && (has(SYS_ADMIN) || has(BPF));
    if !config.guard.interfaces.is_empty() && !may_guard {
        let advice = "the guard needs CAP_BPF and CAP_NET_ADMIN: run as root, or AmbientCapabilities= in the unit";
        return Check::fail(NAME, found, advice);
    }
    // Raw: a cut session is ended by packets that no socket of ours sends.
    let may_splice = may_guard && has(NET_RAW);
    if !config.splice.interfaces.is_empty() && !may_splice {
        let advice = "the splice needs CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW: run as root, or AmbientCapabilities= in \
                      the unit";
        return Check::fail(NAME, found, advice);
    }
    let low: Vec<u16> = config.listeners.values().flat_map(|l| &l.bind).map(|a| a.port()).collect();
    let first_free = sysctl("net/ipv4/ip_unprivileged_port_start").and_then(|t| t.parse().ok()).unwrap_or(1024);
    if let Some(port) = low.into_iter().find(|port| *port != 0 && *port < first_free)
        && !has(NET_BIND_SERVICE)
    {
        let advice =
            format!("port {port} needs CAP_NET_BIND_SERVICE: run as root, or AmbientCapabilities= in the unit");
        return Check::fail(NAME, found, advice);
    }
    Check::ok(NAME, found)
}

/// Tried by making a ring.
fn io_uring() -> Check {
    const NAME: &str = "road relay";
    match io_uring::IoUring::new(8) {
        Ok(_) => Check::ok(NAME, "io_uring works"),
        Err(error) => {
            let advice = match sysctl("kernel/io_uring_disabled").as_deref() {
                Some("1") => {
                    "sysctl kernel.io_uring_disabled is 1: set it to 0, or put pgsplice's user into kernel.io_uring_group"
                }
                Some("2") => "sysctl kernel.io_uring_disabled is 2: set it to 0",
                _ => "the kernel needs CONFIG_IO_URING, and no seccomp filter (containers have one) may refuse it",
            };
            Check::fail(NAME, format!("io_uring: {error}"), advice)
        }
    }
}
