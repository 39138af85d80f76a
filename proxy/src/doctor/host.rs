//! Limits and settings of the host that a proxy with many sessions meets.

use super::{Check, sysctl, sysctl_number};
use crate::config::Config;

/// Descriptors besides those of sessions: listeners, rings, logs, the store, probes.
const OWN_DESCRIPTORS: u64 = 256;
/// Below this a busy proxy meets the end of its ports towards one backend.
const FEW_PORTS: u64 = 20_000;

pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![descriptors(config)];
    checks.extend(ports());
    checks.extend(backlog(config));
    checks.extend(syncookies());
    checks
}

fn descriptors(config: &Config) -> Check {
    const NAME: &str = "open files";
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives through the call, which fills it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        let error = std::io::Error::last_os_error();
        return Check::warn(NAME, format!("the limit cannot be read: {error}"), "check LimitNOFILE= of the unit");
    }
    // pgsplice raises the soft limit to the hard one.
    let hard = limit.rlim_max;
    let limited = config.listeners.values().all(|l| l.max_sessions != 0) && !config.listeners.is_empty();
    let sessions: u64 = config.listeners.values().map(|l| u64::from(l.max_sessions)).sum();
    let possible = hard.saturating_sub(OWN_DESCRIPTORS) / 2;
    let found = format!("limit {hard}, enough for {possible} sessions");
    if limited && sessions > possible {
        let need = sessions * 2 + OWN_DESCRIPTORS;
        let advice = format!("max_sessions of the listeners add up to {sessions}: set LimitNOFILE={need} in the unit");
        return Check::fail(NAME, found, advice);
    }
    if possible < 10_000 {
        return Check::warn(NAME, found, "raise LimitNOFILE= in the unit (or `ulimit -Hn`)");
    }
    Check::ok(NAME, found)
}

fn ports() -> Option<Check> {
    const NAME: &str = "source ports";
    let range = sysctl("net/ipv4/ip_local_port_range")?;
    let (low, high) = range.split_once(' ')?;
    let (low, high): (u64, u64) = (low.parse().ok()?, high.parse().ok()?);
    let count = (high + 1).saturating_sub(low);
    let found = format!("{low}-{high}, so {count} sessions to each backend address");
    Some(if count < FEW_PORTS {
        Check::warn(NAME, found, "widen it: sysctl net.ipv4.ip_local_port_range='10240 65535'")
    } else {
        Check::ok(NAME, found)
    })
}

fn backlog(config: &Config) -> Option<Check> {
    const NAME: &str = "listen queue";
    let somaxconn = sysctl_number("net/core/somaxconn")?;
    let wanted = config.listeners.values().map(|l| u64::try_from(l.backlog).unwrap_or(0)).max();
    let found = format!("net.core.somaxconn {somaxconn}");
    Some(match wanted {
        Some(wanted) if wanted > somaxconn => {
            let advice = format!("a listener's backlog of {wanted} is cut to it: sysctl net.core.somaxconn={wanted}");
            Check::warn(NAME, found, advice)
        }
        _ => Check::ok(NAME, found),
    })
}

fn syncookies() -> Option<Check> {
    const NAME: &str = "SYN cookies";
    Some(match sysctl_number("net/ipv4/tcp_syncookies")? {
        0 => Check::warn(NAME, "off", "a SYN flood fills the listen queue: sysctl net.ipv4.tcp_syncookies=1"),
        _ => Check::ok(NAME, "on when the listen queue is full"),
    })
}
