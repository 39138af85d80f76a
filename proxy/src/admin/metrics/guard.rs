//! What the guard counts in the kernel, read at scrape time. Without a guard the families are there and empty.

use std::fmt;

use super::collect::Families;
use crate::guard::{Guard, GuardCounters};

pub fn collect(guard: Option<&Guard>, out: &mut Families<'_>) -> fmt::Result {
    let attachments = guard.map(Guard::attachments).unwrap_or_default();
    let modes = attachments.iter().map(|one| {
        let mode = one.mode.to_string();
        ([("interface", one.interface.clone()), ("mode", mode)], 1_u64)
    });
    out.gauge("pgsplice_guard_attached", "Interfaces that have the XDP program; always 1", modes)?;
    let listeners = guard.map_or(Ok(Vec::new()), Guard::counters).unwrap_or_else(|error| {
        // Missing samples are seen; a scrape that fails as a whole would hide all the others.
        tracing::warn!("the guard's counters cannot be read: {error}");
        Vec::new()
    });
    let each = |read: fn(&GuardCounters) -> u64| {
        listeners.iter().map(move |(name, counters)| ([("listener", name.as_str())], read(counters)))
    };
    out.counter("pgsplice_guard_packets", "TCP packets to a listener, denied ones too", each(|c| c.packets))?;
    out.counter("pgsplice_guard_received_bytes", "Of those, with Ethernet headers", each(|c| c.bytes))?;
    out.counter("pgsplice_guard_syns", "Connection attempts, denied ones too", each(|c| c.syns))?;
    out.counter("pgsplice_guard_denied_packets", "Packets dropped, source denied", each(|c| c.denied))?;
    let entries = guard.and_then(|guard| guard.deny_list().ok()).map(|list| list.len() as u64);
    out.one_gauge("pgsplice_guard_deny_entries", "Prefixes on the deny list", entries)
}
