//! The BPF programs: thin entry points; what they do stands in `program/`.
//!
//! Built for bpfel-unknown-none only, by `cargo xtask build-ebpf`.
#![no_std]
#![no_main]
// Stable for no BPF target yet; the build sets RUSTC_BOOTSTRAP for build-std as it is.
#![feature(asm_experimental_arch)]

mod program {
    pub mod event;
    pub mod guard;
    pub mod headers;
    pub mod icmp;
    pub mod key;
    pub mod maps;
    pub mod options;
    pub mod packet;
    pub mod parse;
    pub mod reset;
    pub mod rewrite;
    pub mod route;
    pub mod splice;
    pub mod sum;
    pub mod tc;
    pub mod tcp;
    pub mod track;
    pub mod watch;
    pub mod xdp;
}

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

// Each XDP program twice: `_frags` for frames in several buffers, the other for kernels before 5.18, where a driver
// refuses it above about 3.5 kB MTU.

#[xdp]
pub fn guard(ctx: XdpContext) -> u32 {
    program::xdp::admit::<false, false>(&ctx)
}

#[xdp(frags)]
pub fn guard_frags(ctx: XdpContext) -> u32 {
    program::xdp::admit::<false, true>(&ctx)
}

#[xdp]
pub fn splice(ctx: XdpContext) -> u32 {
    program::xdp::admit::<true, false>(&ctx)
}

#[xdp(frags)]
pub fn splice_frags(ctx: XdpContext) -> u32 {
    program::xdp::admit::<true, true>(&ctx)
}

#[classifier]
pub fn tc_splice(ctx: TcContext) -> i32 {
    program::tc::splice(&ctx)
}

#[classifier]
pub fn tc_keep_quiet(ctx: TcContext) -> i32 {
    program::tc::keep_quiet(&ctx)
}

/// The kernel's helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
