//! What the XDP and TC roads meet on this host: their interfaces, and what the kernel's own TCP, routing and firewall
//! would do to a session that it knows nothing of.

use std::net::TcpStream;
use std::ops::RangeInclusive;

use super::interface::{self, NativeXdp};
use super::{Check, roads, sysctl, sysctl_number};
use crate::bpf::{XdpState, ifindex, with_lower, xdp_state};
use crate::config::{Config, SpliceMode};
use crate::ethtool;
use crate::netlink::{self, Request, find};

/// Above this a packet does not fit into one page with XDP's headroom, and comes in fragments.
const LARGE_MTU: u32 = 3498;
/// Connections made to see whether they are tracked.
const TRACKED: u64 = 8;

/// linux/netfilter/nfnetlink.h, nf_tables.h, netfilter.h
const NFT_GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

/// Which program an interface gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Xdp,
    Tc,
}

pub fn examine(config: &Config) -> Vec<Check> {
    let splice = &config.splice;
    if splice.interfaces.is_empty() {
        return vec![Check::ok("splice", "off: splice.interfaces is empty, so neither XDP nor TC takes a session")];
    }
    let mut checks = Vec::new();
    let mut asks_routing = false;
    for name in &splice.interfaces {
        let (program, check) = examine_interface(name, splice.mode);
        let vlans = interface::vlans_on(name);
        asks_routing |= program == Some(Program::Xdp) || program == Some(Program::Tc) && !vlans.is_empty();
        checks.push(check);
        if program == Some(Program::Xdp) {
            checks.extend(judge_vlans(name, &vlans, interface::strips_vlan(name)));
        }
        if program == Some(Program::Tc) {
            let lists =
                |device: &String| judge_lists(device, ethtool::is_on(device, ethtool::GRO_LISTS).unwrap_or(false));
            checks.extend(with_lower(name).iter().filter_map(lists));
        }
    }
    if asks_routing {
        checks.extend(forwarding(config));
    }
    checks.extend(reverse_path(&splice.interfaces));
    checks.push(ports(&splice.source_ports));
    checks.push(conntrack());
    checks
}

fn examine_interface(name: &str, mode: SpliceMode) -> (Option<Program>, Check) {
    let title = format!("splice on {name}");
    let Some(index) = ifindex(name) else {
        let advice = "correct splice.interfaces; `ip link` lists them";
        return (None, Check::fail(title, "there is none of this name", advice));
    };
    let driver = interface::driver(name).unwrap_or_else(|| crate::bpf::driver(name));
    let native = interface::native_xdp(index).ok();
    let mtu = interface::mtu(name).unwrap_or(0);
    let (program, check) = judge(&title, mode, &driver, native, mtu);
    // A program of the guard's, or of a pgsplice that runs, is ours to replace; another one shows at the guard's check.
    if program == Some(Program::Xdp) && matches!(xdp_state(index), Ok(XdpState::Generic { .. })) {
        let advice = "redirecting needs native mode: set guard.mode = \"native\", or splice.mode = \"tc\"";
        return (program, Check::warn(title, format!("{}, and XDP runs in generic mode there", check.found), advice));
    }
    (program, check)
}

/// `native` is `None` where the kernel does not tell.
fn judge(title: &str, mode: SpliceMode, driver: &str, native: Option<NativeXdp>, mtu: u32) -> (Option<Program>, Check) {
    let is_veth = driver == "veth";
    let refuses = native.is_some_and(|native| !native.redirects);
    let fragments = mtu > LARGE_MTU && native.is_some_and(|native| !native.fragments);
    let program = match mode {
        SpliceMode::Auto if is_veth || refuses || fragments => Program::Tc,
        SpliceMode::Auto | SpliceMode::Xdp => Program::Xdp,
        SpliceMode::Tc => Program::Tc,
    };
    let what = match native {
        Some(NativeXdp { redirects: true, .. }) => "native XDP",
        Some(_) => "no native XDP",
        None => "native XDP unknown until it is tried",
    };
    let runs = match program {
        Program::Xdp => "XDP",
        Program::Tc => "TC",
    };
    let found = format!("driver {driver}, {what}, MTU {mtu}: {runs}");
    let check = match program {
        Program::Xdp if refuses => Check::fail(title, found, "set splice.mode = \"auto\" or \"tc\""),
        Program::Xdp if fragments => {
            let advice = format!("its XDP takes no packets above {LARGE_MTU} bytes: splice.mode = \"auto\" or \"tc\"");
            Check::fail(title, found, advice)
        }
        Program::Xdp if is_veth => {
            let advice = "packets from a veth have no checksum that XDP could keep: splice.mode = \"auto\" or \"tc\", \
                          or `ethtool -K PEER tx off` at its other end";
            Check::warn(title, found, advice)
        }
        _ => Check::ok(title, found),
    };
    (Some(program), check)
}

/// A tag that the card took off is out of XDP's sight.
fn judge_vlans(name: &str, vlans: &[String], strips: Option<bool>) -> Option<Check> {
    let (title, on) = (format!("VLAN on {name}"), vlans.join(", "));
    match strips {
        _ if vlans.is_empty() => None,
        Some(true) => {
            let advice = format!("XDP does not see the tag: `ethtool -K {name} rxvlan off`, or splice.mode = \"tc\"");
            Some(Check::fail(title, format!("{on}, and rx-vlan-offload is on"), advice))
        }
        _ => Some(Check::ok(title, format!("{on}, tags are left in the packets"))),
    }
}

/// Of what GRO joins as a list, TC would send on all but the first with numbers of the wrong connection.
fn judge_lists(name: &str, on: bool) -> Option<Check> {
    on.then(|| {
        let advice = format!("`ethtool -K {name} rx-gro-list off`; a start of pgsplice turns it off as well");
        Check::fail(format!("GRO on {name}"), "rx-gro-list is on, and what it joins cannot be forwarded by TC", advice)
    })
}

/// `bpf_fib_lookup` answers only where the stack would forward.
fn forwarding(config: &Config) -> Vec<Check> {
    let has_v6 = config.listeners.values().flat_map(|listener| &listener.bind).any(|bind| bind.is_ipv6());
    let off: Vec<String> = ["ipv4", "ipv6"]
        .into_iter()
        .filter(|family| *family == "ipv4" || has_v6)
        .flat_map(|family| {
            config.splice.interfaces.iter().map(move |name| format!("net/{family}/conf/{name}/forwarding"))
        })
        .filter(|key| sysctl_number(key) == Some(0))
        // In the form in which sysctl(8) takes an interface that has a dot in its name as well.
        .collect();
    if !off.is_empty() {
        let set: Vec<String> = off.iter().map(|key| format!("{key}=1")).collect();
        let advice = format!("sysctl -w {}; and let the FORWARD chain drop what is routed", set.join(" "));
        return vec![Check::fail("forwarding", "off, so XDP may not redirect, nor TC into a VLAN", advice)];
    }
    let check = match drops_forwarded() {
        Some(true) => Check::ok("forwarding", "on, and a chain at the forward hook drops by default"),
        _ if iptables_legacy() => Check::ok("forwarding", "on; see to it that `iptables-legacy -P FORWARD` is DROP"),
        _ => {
            let advice = "what XDP redirects does not pass there, so drop the rest: nft 'add table inet pgsplice; add \
                          chain inet pgsplice forward { type filter hook forward priority 0; policy drop; }'";
            Check::warn("forwarding", "on, and this host routes for whoever asks", advice)
        }
    };
    vec![check]
}

/// Whether a chain of nftables (iptables-nft is the same) at the forward hook has the policy to drop. `None` where
/// nobody tells.
fn drops_forwarded() -> Option<bool> {
    let ask = Request::new(NFT_GETCHAIN, libc::NLM_F_DUMP, &[0; 4]);
    let chains = netlink::ask(libc::NETLINK_NETFILTER, ask).ok()?;
    Some(chains.iter().any(|chain| is_forward_drop(chain)))
}

/// `nfgenmsg`, then the chain's attributes, numbers in network order.
fn is_forward_drop(chain: &[u8]) -> bool {
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let Some((&family, rest)) = chain.split_first() else { return false };
    let attributes = rest.get(3..).unwrap_or_default();
    let hook = find(attributes, NFTA_CHAIN_HOOK).and_then(|hook| find(hook, NFTA_HOOK_HOOKNUM));
    let policy = find(attributes, NFTA_CHAIN_POLICY);
    [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&family)
        && hook.and_then(number) == Some(NF_INET_FORWARD)
        && policy.and_then(number) == Some(NF_DROP)
}

fn iptables_legacy() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|file| std::fs::read_to_string(file).is_ok_and(|tables| tables.lines().any(|table| table == "filter")))
}

/// A session's first packets go through the stack, which in strict mode wants them where it would send the answers.
fn reverse_path(interfaces: &[String]) -> Option<Check> {
    const NAME: &str = "rp_filter";
    let all = sysctl_number("net/ipv4/conf/all/rp_filter")?;
    // ip-sysctl.rst: the higher of the two counts.
    let mode = |name: &String| sysctl_number(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0).max(all);
    let strict: Vec<&str> = interfaces.iter().filter(|name| mode(name) == 1).map(String::as_str).collect();
    Some(if strict.is_empty() {
        Check::ok(NAME, "not strict")
    } else if interfaces.len() == 1 {
        Check::ok(NAME, format!("strict on {}, which one interface can bear", strict.join(", ")))
    } else {
        let advice = "if packets come in by another interface than answers leave by, they are lost: set it to 2";
        Check::warn(NAME, format!("strict on {}", strict.join(", ")), advice)
    })
}

fn ports(range: &RangeInclusive<u16>) -> Check {
    const NAME: &str = "splice.source_ports";
    let (first, last) = (range.start(), range.end());
    let local = sysctl("net/ipv4/ip_local_port_range").unwrap_or_default();
    let reserved = sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    match given_out(range, &local, &reserved) {
        0 => {
            let count = u32::from(*last) - u32::from(*first) + 1;
            Check::ok(
                NAME,
                format!("{first}-{last}, so {count} sessions to each backend address; the kernel's: {local}"),
            )
        }
        shared => {
            let found = format!("{shared} of {first}-{last} are the kernel's to give out ({local})");
            let before = if reserved.is_empty() { String::new() } else { format!("{reserved},") };
            let advice = format!(
                "another connection may get a spliced session's port: \
                 sysctl -w net.ipv4.ip_local_reserved_ports={before}{first}-{last}"
            );
            Check::fail(NAME, found, advice)
        }
    }
}

/// How many of these ports the kernel picks for connections that ask for none: within `local` (`32768 60999`) and not
/// `reserved` (`8080,9148-9150`).
fn given_out(range: &RangeInclusive<u16>, local: &str, reserved: &str) -> usize {
    let parse = |text: &str, between: char| {
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    };
    let Some(local) = parse(local, ' ') else { return 0 };
    let reserved: Vec<RangeInclusive<u16>> = reserved.split(',').filter_map(|part| parse(part, '-')).collect();
    let is_reserved = |port: &u16| reserved.iter().any(|part| part.contains(port));
    range.clone().filter(|port| local.contains(port) && !is_reserved(port)).count()
}

/// Makes connections and sees whether the table grows with them: the module may be loaded and not be used here.
fn conntrack() -> Check {
    const NAME: &str = "conntrack";
    const COUNT: &str = "net/netfilter/nf_conntrack_count";
    let Some(before) = sysctl_number(COUNT) else { return Check::ok(NAME, "not loaded") };
    let connections: Vec<(TcpStream, TcpStream)> = (0..TRACKED).map_while(|_| roads::pair().ok()).collect();
    let after = sysctl_number(COUNT).unwrap_or(0);
    let made = connections.len() as u64;
    drop(connections);
    if made < TRACKED || after < before + made {
        return Check::ok(NAME, "loaded, and connections are not tracked");
    }
    let max = sysctl_number("net/netfilter/nf_conntrack_max").unwrap_or(0);
    let advice = "it does not see a spliced session end, and keeps its entries for days: nft 'add table inet pgsplice; add chain inet \
                  pgsplice raw { type filter hook prerouting priority raw; }; add rule inet pgsplice raw tcp dport PORTS notrack', \
                  the same at hook output, for the listeners' ports and splice.source_ports";
    Check::warn(NAME, format!("tracks connections: {after} of {max} entries"), advice)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const ALL: Option<NativeXdp> = Some(NativeXdp { redirects: true, fragments: true });
    const PLAIN: Option<NativeXdp> = Some(NativeXdp { redirects: true, fragments: false });
    const NONE: Option<NativeXdp> = Some(NativeXdp { redirects: false, fragments: false });

    #[test]
    fn each_interface_gets_the_program_that_runs_there() {
        for (mode, driver, native, mtu, program, level) in [
            (SpliceMode::Auto, "ena", PLAIN, 1500, Program::Xdp, Level::Ok),
            (SpliceMode::Auto, "ena", None, 1500, Program::Xdp, Level::Ok),
            (SpliceMode::Auto, "ena", PLAIN, 9000, Program::Tc, Level::Ok),
            (SpliceMode::Auto, "ice", ALL, 9000, Program::Xdp, Level::Ok),
            (SpliceMode::Auto, "e1000", NONE, 1500, Program::Tc, Level::Ok),
            (SpliceMode::Auto, "veth", ALL, 1500, Program::Tc, Level::Ok),
            (SpliceMode::Xdp, "veth", ALL, 1500, Program::Xdp, Level::Warn),
            (SpliceMode::Xdp, "e1000", NONE, 1500, Program::Xdp, Level::Fail),
            (SpliceMode::Xdp, "ena", PLAIN, 9000, Program::Xdp, Level::Fail),
            (SpliceMode::Tc, "e1000", NONE, 9000, Program::Tc, Level::Ok),
        ] {
            let (chosen, check) = judge("", mode, driver, native, mtu);
            assert_eq!((chosen, check.level), (Some(program), level), "{mode:?} {driver} {mtu}: {check:?}");
        }
        let (program, check) = examine_interface("no-such-if", SpliceMode::Auto);
        assert_eq!((program, check.level), (None, Level::Fail));
    }

    #[test]
    fn a_card_that_takes_vlan_tags_off_is_a_failure_only_where_there_are_vlans() {
        let level = |vlans: &[String], strips| judge_vlans("eth0", vlans, strips).map(|check| check.level);
        let vlans = ["eth0.5".to_owned()];
        assert_eq!(level(&[], Some(true)), None);
        assert_eq!(level(&vlans, Some(true)), Some(Level::Fail));
        assert_eq!(level(&vlans, Some(false)), Some(Level::Ok));
        assert_eq!(level(&vlans, None), Some(Level::Ok));
    }

    #[test]
    fn lists_that_gro_makes_are_a_failure() {
        assert_eq!(judge_lists("eth0", true).map(|check| check.level), Some(Level::Fail));
        assert_eq!(judge_lists("eth0", false).map(|check| check.level), None);
    }

    #[test]
    fn ports_the_kernel_gives_out_are_counted() {
        for (range, local, reserved, expected) in [
            (12_000..=32_767, "32768 60999", "", 0),
            (12_000..=32_768, "32768 60999", "", 1),
            (12_000..=32_767, "1024 65535", "", 20_768),
            (12_000..=32_767, "1024 65535", "8080,12000-32767", 0),
            (12_000..=32_767, "1024 65535", "12000,12001-32766", 1),
            (65_535..=65_535, "1024 65535", "", 1),
            (12_000..=32_767, "", "", 0),
        ] {
            assert_eq!(given_out(&range, local, reserved), expected, "{local} {reserved}");
        }
    }

    #[test]
    fn a_chain_that_drops_what_is_forwarded_is_known() {
        let chain = |family: u8, hook: u32, policy: u32| {
            let mut nested = Request::new(0, 0, &[]);
            nested.attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
            let mut chain = Request::new(0, 0, &[family, 0, 0, 0]);
            chain.attribute(3, b"forward\0");
            chain.attribute(0x8000 | NFTA_CHAIN_HOOK, nested.payload());
            chain.attribute(NFTA_CHAIN_POLICY, &policy.to_be_bytes());
            is_forward_drop(chain.payload())
        };
        assert!(chain(NFPROTO_INET, NF_INET_FORWARD, NF_DROP));
        assert!(chain(NFPROTO_IPV4, NF_INET_FORWARD, NF_DROP));
        assert!(!chain(NFPROTO_IPV4, NF_INET_FORWARD, 1));
        assert!(!chain(NFPROTO_IPV4, 1, NF_DROP));
        assert!(!chain(7, NF_INET_FORWARD, NF_DROP));
        assert!(!is_forward_drop(&[]) && !is_forward_drop(&[2, 0, 0, 0]));
    }

    #[test]
    fn looking_at_this_host_fails_nothing_that_is_not_configured() {
        let checks = examine(&Config::default());
        assert_eq!(checks.iter().map(|check| check.level).collect::<Vec<_>>(), [Level::Ok]);
    }
}
