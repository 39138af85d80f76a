//! The maps of the guard: which packets are ours, what was counted, who is denied.

/// Names of the maps in the object and on bpffs.
pub const LISTENERS: &str = "LISTENERS";
pub const COUNTERS: &str = "COUNTERS";
pub const DENY4: &str = "DENY4";
pub const DENY6: &str = "DENY6";
/// User space only: the listener that each id stands for, so that a new process goes on counting where the last one ended.
pub const NAMES: &str = "NAMES";

/// The XDP program for kernels with multi-buffer frames (5.18 and later) and the one for those without.
pub const PROGRAM_FRAGS: &str = "guard_frags";
pub const PROGRAM: &str = "guard";

/// Listeners that can be counted; ids are below this.
pub const MAX_LISTENERS: u32 = 256;
/// Addresses of all listeners together.
pub const MAX_LISTENER_ADDRESSES: u32 = 1024;
/// Prefixes in each deny list.
pub const MAX_DENY: u32 = 65_536;

/// Where a packet goes: key of `LISTENERS`, whose value is the listener's id (`u32`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Network order; IPv4 as `::ffff:a.b.c.d`, so that its wildcard is `::ffff:0.0.0.0` and never `::`.
    pub addr: [u8; 16],
    /// Network order.
    pub port: [u8; 2],
    pub pad: [u8; 2],
}

impl ListenerKey {
    pub const fn new(addr: [u8; 16], port: [u8; 2]) -> Self {
        Self { addr, port, pad: [0; 2] }
    }

    /// The same port on every address of the same family.
    pub const fn wildcard(&self) -> Self {
        let a = self.addr;
        let v4 = u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]) == 0
            && u32::from_be_bytes([a[8], a[9], a[10], a[11]]) == 0xffff;
        Self::new(if v4 { v4_mapped([0; 4]) } else { [0; 16] }, self.port)
    }
}

/// `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
pub const fn v4_mapped(a: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// Value of `COUNTERS`, one a CPU, indexed by listener id. Only ever grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardCounters {
    /// Every TCP packet to the listener that reached the interface, the denied ones too.
    pub packets: u64,
    /// Of those packets, with their Ethernet headers.
    pub bytes: u64,
    /// Connection attempts: SYN without ACK, the denied ones too.
    pub syns: u64,
    /// Packets dropped because their source is on a deny list.
    pub denied: u64,
}

/// Value of `DENY4` and `DENY6`, one a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenyEntry {
    /// Who put it there, `DENY_BY_*` bits; never none.
    pub by: u32,
    pub pad: u32,
    /// Packets dropped because this was the longest prefix that held their source.
    pub dropped: u64,
}

/// `guard.deny` of the configuration.
pub const DENY_BY_CONFIG: u32 = 1;
/// `pgsplice deny add`.
pub const DENY_BY_COMMAND: u32 = 2;

/// Value of `NAMES`, indexed by listener id: UTF-8, zeroes after it; all zeroes is a free id.
pub type ListenerName = [u8; 64];

#[cfg(feature = "host")]
mod pod {
    // SAFETY: repr(C) of byte arrays only: no padding, every bit pattern is a value.
    unsafe impl aya::Pod for super::ListenerKey {}
    // SAFETY: repr(C) of four u64: no padding, every bit pattern is a value.
    unsafe impl aya::Pod for super::GuardCounters {}
    // SAFETY: repr(C) with its padding named: every bit pattern is a value.
    unsafe impl aya::Pod for super::DenyEntry {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_layout_version_3() {
        assert_eq!(crate::LAYOUT_VERSION, 3);
        assert_eq!(size_of::<ListenerKey>(), 20);
        assert_eq!(size_of::<GuardCounters>(), 32);
        assert_eq!(size_of::<DenyEntry>(), 16);
        assert_eq!((MAX_LISTENERS, MAX_LISTENER_ADDRESSES, MAX_DENY), (256, 1024, 65_536));
    }

    #[test]
    fn a_wildcard_stays_in_its_family() {
        let v4 = ListenerKey::new(v4_mapped([10, 0, 0, 1]), [0x15, 0x38]);
        assert_eq!(v4.wildcard().addr, v4_mapped([0; 4]));
        let mut a = [0; 16];
        a[0] = 0x20;
        assert_eq!(ListenerKey::new(a, [0x15, 0x38]).wildcard().addr, [0; 16]);
    }
}
