//! The BPF programs: thin entry points; what they do stands in `program/`.
//!
//! Built for bpfel-unknown-none only, by `cargo xtask build-ebpf`.
#![no_std]
#![no_main]
// Stable for no BPF target yet; the build sets RUSTC_BOOTSTRAP for build-std as it is.
#![feature(asm_experimental_arch)]

mod program {
    pub mod guard;
    pub mod headers;
    pub mod maps;
    pub mod parse;
    pub mod route;
}

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// For frames in one buffer: kernels before 5.18, where a driver refuses it above about 3.5 kB MTU.
#[xdp]
pub fn guard(ctx: XdpContext) -> u32 {
    let len = (ctx.data_end() - ctx.data()) as u64;
    program::guard::admit(&ctx, len).unwrap_or(XDP_PASS)
}

/// The same for frames in several buffers; the headers are always in the first.
#[xdp(frags)]
pub fn guard_frags(ctx: XdpContext) -> u32 {
    // SAFETY: the helper takes the context this program was called with.
    let len = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) };
    program::guard::admit(&ctx, len).unwrap_or(XDP_PASS)
}

/// The kernel's helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
