//! Whether the kernel encrypts what it sends to an end (IPsec). What comes from such an end the TC program may see
//! decrypted; what the programs send would leave as it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::netlink::{self, Request};

/// How long what was read is used.
const FRESH: Duration = Duration::from_secs(1);

/// linux/xfrm.h
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_BLOCK: u8 = 1;
const XFRMA_TMPL: u16 = 5;
/// `struct xfrm_userpolicy_info`, which begins with the selector.
const POLICY_LEN: usize = 168;
const DIRECTION_AT: usize = 160;
const ACTION_AT: usize = 161;

#[derive(Debug, Default)]
pub struct Policies(Mutex<Option<(Arc<Vec<Selector>>, Instant)>>);

/// What a policy for outgoing packets is about.
#[derive(Debug, PartialEq, Eq)]
struct Selector {
    to: Prefix,
    from: Prefix,
    /// The port and which of its bits count.
    to_port: [u16; 2],
    from_port: [u16; 2],
    /// 0: all.
    protocol: u8,
}

type Prefix = (IpAddr, u8);

impl Policies {
    /// Whether a policy is about TCP from `own` to `end`. An error is a yes.
    pub fn concern(&self, own: SocketAddr, end: SocketAddr) -> bool {
        match self.read() {
            Ok(policies) => policies.iter().any(|policy| policy.takes(own, end)),
            Err(error) => {
                tracing::warn!("the policies of IPsec cannot be read: {error}");
                true
            }
        }
    }

    fn read(&self) -> io::Result<Arc<Vec<Selector>>> {
        let mut known = self.0.lock();
        if let Some((policies, since)) = &*known
            && since.elapsed() < FRESH
        {
            return Ok(policies.clone());
        }
        let dump = Request::new(XFRM_MSG_GETPOLICY, libc::NLM_F_DUMP, &[]);
        let answers = match netlink::ask(libc::NETLINK_XFRM, dump) {
            // A kernel without IPsec.
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Vec::new(),
            answers => answers?,
        };
        let policies = Arc::new(answers.iter().filter_map(|answer| Selector::read(answer)).collect());
        *known = Some((Arc::clone(&policies), Instant::now()));
        Ok(policies)
    }
}

impl Selector {
    /// `None`: of a policy that has no say in what leaves, or lets it pass as it is.
    fn read(policy: &[u8]) -> Option<Self> {
        let attributes = policy.get(POLICY_LEN..)?;
        let changes = netlink::attributes(attributes).any(|(kind, value)| kind == XFRMA_TMPL && !value.is_empty());
        if policy[DIRECTION_AT] != XFRM_POLICY_OUT || !changes && policy[ACTION_AT] != XFRM_POLICY_BLOCK {
            return None;
        }
        // `struct xfrm_selector`: daddr, saddr, dport, dport_mask, sport, sport_mask, family, prefixlen_d, prefixlen_s, proto.
        let v4 = libc::c_int::from(u16::from_ne_bytes([policy[40], policy[41]])) == libc::AF_INET;
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = policy[at..at + 16].try_into().ok()?;
            let [a, b, c, d, ..] = octets;
            Some(if v4 { [a, b, c, d].into() } else { octets.into() })
        };
        let ports = |at: usize| [0, 2].map(|more| u16::from_be_bytes([policy[at + more], policy[at + more + 1]]));
        Some(Self {
            to: (address(0)?, policy[42]),
            from: (address(16)?, policy[43]),
            to_port: ports(32),
            from_port: ports(36),
            protocol: policy[44],
        })
    }

    fn takes(&self, own: SocketAddr, end: SocketAddr) -> bool {
        let has_port = |[wanted, mask]: [u16; 2], port: u16| (wanted ^ port) & mask == 0;
        holds(self.to, end.ip())
            && holds(self.from, own.ip())
            && has_port(self.to_port, end.port())
            && has_port(self.from_port, own.port())
            && (self.protocol == 0 || libc::c_int::from(self.protocol) == libc::IPPROTO_TCP)
    }
}

/// Whether the address is one of the prefix.
fn holds((prefix, bits): Prefix, address: IpAddr) -> bool {
    let [prefix, address] = match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => [prefix, address].map(|ip| u128::from(u32::from(ip)) << 96),
        (IpAddr::V6(prefix), IpAddr::V6(address)) => [prefix, address].map(u128::from),
        _ => return false,
    };
    (prefix ^ address).checked_shr(128 - u32::from(bits.min(128))).is_none_or(|differ| differ == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_policy_takes_what_its_selector_says() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let any = |to: &str, bits, from: &str| Selector {
            to: (ip(to), bits),
            from: (ip(from), 0),
            to_port: [0; 2],
            from_port: [0; 2],
            protocol: 0,
        };
        let (own, end) = (at("10.1.0.5:5432"), at("10.1.0.100:40000"));
        assert!(any("10.1.0.100", 32, "0.0.0.0").takes(own, end));
        assert!(any("10.1.0.64", 26, "0.0.0.0").takes(own, end));
        assert!(any("0.0.0.0", 0, "0.0.0.0").takes(own, end));
        assert!(!any("10.1.0.101", 32, "0.0.0.0").takes(own, end));
        assert!(!any("::", 0, "::").takes(own, end));
        assert!(any("fd00::", 16, "::").takes(at("[fd00::1]:5432"), at("[fd00:1::2]:40000")));
        assert!(!any("fd00::", 32, "::").takes(at("[fd00::1]:5432"), at("[fd00:1::2]:40000")));
        assert!(!Selector { to_port: [22, 0xffff], ..any("0.0.0.0", 0, "0.0.0.0") }.takes(own, end));
        assert!(Selector { from_port: [5432, 0xffff], ..any("0.0.0.0", 0, "0.0.0.0") }.takes(own, end));
        assert!(!Selector { protocol: 17, ..any("0.0.0.0", 0, "0.0.0.0") }.takes(own, end));
        assert!(Selector { protocol: 6, ..any("0.0.0.0", 0, "0.0.0.0") }.takes(own, end));
    }

    /// In a network of its own, by ip-xfrm(8).
    #[test]
    fn the_kernels_policies_are_read() {
        let test = || {
            // SAFETY: unshare(2) takes no pointers, and changes this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            let (own, end) = (at("10.1.0.5:5432"), at("10.1.0.100:40000"));
            assert!(!Policies::default().concern(own, end));
            let tmpl = |own: &str, end: &str| format!("tmpl src {own} dst {end} proto esp mode tunnel");
            for policy in [
                format!("src 10.1.0.0/24 dst 10.1.0.96/27 dir out {}", tmpl("10.1.0.5", "10.1.0.1")),
                format!("src fd01::5 dst fd01::/64 proto tcp sport 5432 dir out {}", tmpl("fd01::5", "fd01::1")),
                format!("src 10.1.0.5 dst 10.1.0.9 dir fwd {}", tmpl("10.1.0.5", "10.1.0.1")),
                "src 10.1.0.5 dst 10.1.0.10 dir out action allow".into(),
            ] {
                let command = format!("ip xfrm policy add {policy}");
                let output = std::process::Command::new("sh").args(["-ec", &command]).output().unwrap();
                assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            }
            let policies = Policies::default();
            let concern = |own: &str, end: &str| policies.concern(at(own), at(end));
            assert!(concern("10.1.0.5:5432", "10.1.0.100:40000"));
            assert!(!concern("10.1.0.5:5432", "10.1.0.128:40000"));
            assert!(!concern("10.1.0.5:5432", "10.1.0.9:40000"), "a policy for what is routed");
            assert!(!concern("10.1.0.5:5432", "10.1.0.10:40000"), "an exception");
            assert!(concern("[fd01::5]:5432", "[fd01::7]:40000"));
            assert!(!concern("[fd01::5]:5433", "[fd01::7]:40000"));
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_short_answer_is_no_panic() {
        for length in 0..POLICY_LEN + 20 {
            let _ = Selector::read(&vec![1; length]);
        }
    }
}
