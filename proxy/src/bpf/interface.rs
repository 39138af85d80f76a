//! Network interfaces, as far as it matters where a program is put.

use std::ffi::CString;
use std::fs;

use crate::ethtool;

/// `None` if there is no such interface.
pub fn ifindex(interface: &str) -> Option<u32> {
    let name = CString::new(interface).ok()?;
    // SAFETY: the string is terminated and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The interface and those it stands on: the ports of a bond or bridge, the parent of a VLAN.
pub fn with_lower(interface: &str) -> Vec<String> {
    let mut all = vec![interface.to_owned()];
    let mut at = 0;
    while let Some(upper) = all.get(at) {
        let entries = fs::read_dir(format!("/sys/class/net/{upper}")).into_iter().flatten().flatten();
        let lower: Vec<String> =
            entries.filter_map(|one| Some(one.file_name().to_str()?.strip_prefix("lower_")?.to_owned())).collect();
        all.extend(lower.into_iter().filter(|one| !all.contains(one)).collect::<Vec<_>>());
        at += 1;
    }
    all
}

/// The kernel module behind an interface, `none` for one without a device (veth, bridge).
pub fn driver(interface: &str) -> String {
    fs::read_link(format!("/sys/class/net/{interface}/device/driver"))
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "none".into())
}

/// Packets that GRO joins as a list cannot go on in another connection: when the kernel takes them apart again it carries
/// the first one's addresses and ports over to the others, and no other number (net/ipv4/tcp_offload.c,
/// `__tcp4_gso_segment_list_csum`).
pub(super) fn keep_lists_off(interface: &str) {
    match ethtool::is_on(interface, ethtool::GRO_LISTS) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => return tracing::debug!(interface, "whether GRO makes lists is not known: {error}"),
    }
    match ethtool::turn_off(interface, ethtool::GRO_LISTS) {
        Ok(()) => tracing::warn!(interface, "{} is off now: TC cannot forward what it joins", ethtool::GRO_LISTS),
        Err(error) => tracing::error!(
            interface,
            "sessions by TC will hang: {} is on and cannot be turned off: {error}",
            ethtool::GRO_LISTS
        ),
    }
}
