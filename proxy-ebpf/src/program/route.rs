//! What this host's routing table says of a packet: is it for us, or only passing through?

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;

use super::headers::IPPROTO_TCP;
use super::parse::{Source, Tcp};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Would the kernel forward this packet to another host? Also false where forwarding is off or the lookup fails.
#[inline(always)]
pub fn is_forwarded(ctx: &XdpContext, packet: &Tcp) -> bool {
    // SAFETY: the struct is integers and byte arrays; all zeroes is the kernel's "not given".
    let mut fib: FibLookup = unsafe { core::mem::zeroed() };
    fib.l4_protocol = IPPROTO_TCP;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    match packet.src {
        Source::V4(src) => {
            let [.., a, b, c, d] = packet.dst;
            fib.family = AF_INET;
            fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
            fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([a, b, c, d]);
        }
        Source::V6(src) => {
            fib.family = AF_INET6;
            fib.__bindgen_anon_3.ipv6_src = words(src);
            fib.__bindgen_anon_4.ipv6_dst = words(packet.dst);
        }
    }
    // SAFETY: context and parameters live through the call, and the length is the parameters' own.
    let verdict = unsafe { bpf_fib_lookup(ctx.as_ptr(), &mut fib, size_of::<FibLookup>() as i32, 0) };
    const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
    const NO_NEIGH: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
    const FRAG_NEEDED: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
    matches!(verdict, SUCCESS | NO_NEIGH | FRAG_NEEDED)
}

#[inline(always)]
fn words(a: [u8; 16]) -> [u32; 4] {
    // SAFETY: same size, and any bits are a value of either.
    unsafe { core::mem::transmute(a) }
}
