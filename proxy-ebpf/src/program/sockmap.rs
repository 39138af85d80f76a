//! The sockmap road's program, an object of its own: what arrives at one of two joined sockets is queued to the other,
//! as long as the other has room for it.
//!
//! The kernel runs it with the source socket locked, one skb at a time and in order.
#![no_std]
#![no_main]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::{map, stream_verdict};
use aya_ebpf::maps::{Array, HashMap, RingBuf, SockMap};
use aya_ebpf::programs::SkBuffContext;
use pgsplice_ebpf::sockmap::{CLOSED_BYTES, DEFAULT_SESSIONS, Direction};

/// linux/bpf.h
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What an skb costs the sink's send buffer on top of its bytes, at most: an skb of its own.
const SKB_OVERHEAD: u64 = 2048;

#[map]
static SOCKETS: SockMap = SockMap::with_max_entries(2 * DEFAULT_SESSIONS, 0);

#[map]
static COOKIES: HashMap<u64, u32> = HashMap::with_max_entries(2 * DEFAULT_SESSIONS, 0);

#[map]
static LEDGER: Array<Direction> = Array::with_max_entries(2 * DEFAULT_SESSIONS, BPF_F_MMAPABLE);

#[map]
static CLOSED: RingBuf = RingBuf::with_byte_size(2 * DEFAULT_SESSIONS * CLOSED_BYTES, 0);

#[unsafe(no_mangle)]
static WRITE_SEQ: u32 = 0;
#[unsafe(no_mangle)]
static WMEM_QUEUED: u32 = 0;
#[unsafe(no_mangle)]
static SNDBUF: u32 = 0;

#[stream_verdict]
pub fn forward(ctx: SkBuffContext) -> u32 {
    let len = u64::from(ctx.len());
    // A FIN without data. The socket's state knows of it already. Redirected, or passed up while the reverse direction is
    // busy, it breaks the pipe: the kernel's backlog worker takes the 0 it returns for an error.
    if len == 0 {
        return SK_DROP;
    }
    // SAFETY: the helper takes the context this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied out at once; an entry is removed only after its socket was.
    let Some(&index) = (unsafe { COOKIES.get(cookie) }) else { return SK_PASS };
    let Some(direction) = LEDGER.get_ptr_mut(index) else { return SK_PASS };
    let sink = index ^ 1;
    // SAFETY: `get_ptr_mut` bounds the index; user space writes only `armed`, whole, and nobody else writes the rest.
    let open = unsafe { ptr::read_volatile(&raw const (*direction).armed) == (*direction).passed };
    if open && has_room(direction, sink, len) {
        // SAFETY: the helper takes this program's context. It answers SK_DROP if it finds no socket.
        if unsafe { SOCKETS.redirect_skb(&ctx, sink, 0) } == SK_PASS.into() {
            // SAFETY: as above.
            unsafe {
                (*direction).redirected += len;
                (*direction).expected_seq = (*direction).expected_seq.wrapping_add(len as u32);
                (*direction).after_mark += 1;
            }
            return SK_PASS;
        }
    }
    // SAFETY: as above.
    unsafe { (*direction).passed += len };
    if open {
        // One record at most is under way a direction, and there is room for all of them.
        let _ = CLOSED.output::<u32>(&index, 0);
    }
    SK_PASS
}

/// Whether the sink's send buffer takes `len` bytes more on top of what is queued to it, so that the worker that sends
/// them never has to wait for a reader. What waits for one would hold up what is passed up on the same socket.
#[inline(always)]
fn has_room(direction: *mut Direction, sink: u32, len: u64) -> bool {
    let Some((write_seq, queued, room)) = send_buffer(sink) else { return false };
    // SAFETY: `direction` is an element of LEDGER; the program's part of it is written here alone.
    unsafe {
        let it = &mut *direction;
        let armed = ptr::read_volatile(&raw const it.armed);
        if it.phase != armed {
            // Nothing was queued when user space opened the gate, and it sends nothing while the gate is open.
            it.phase = armed;
            it.expected_seq = write_seq;
            it.mark_seq = write_seq;
            it.before_mark = 0;
            it.after_mark = 0;
        } else if write_seq.wrapping_sub(it.mark_seq) as i32 >= 0 {
            it.mark_seq = it.expected_seq;
            it.before_mark = it.after_mark;
            it.after_mark = 0;
        }
        let bytes = u64::from(it.expected_seq.wrapping_sub(write_seq));
        let skbs = u64::from(it.before_mark) + u64::from(it.after_mark);
        let cost = u64::from(queued) + bytes + len + (skbs + 1) * SKB_OVERHEAD;
        cost <= u64::from(room) / 4 * 3
    }
}

/// `write_seq`, `sk_wmem_queued` and `sk_sndbuf` of a joined socket.
#[inline(always)]
fn send_buffer(mut index: u32) -> Option<(u32, u32, u32)> {
    let sockets = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: a lookup in a sockmap yields a counted reference, given back below on every path.
    let socket = unsafe { bpf_map_lookup_elem(sockets, (&raw mut index).cast()) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: `socket` is a socket the verifier knows as such.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket) }.cast::<u8>();
    let found = if tcp.is_null() {
        None
    } else {
        // SAFETY: the offsets are this kernel's own, and the verifier checks each load against its types.
        unsafe { Some((field(tcp, &WRITE_SEQ), field(tcp, &WMEM_QUEUED), field(tcp, &SNDBUF))) }
    };
    // SAFETY: looked up above and not used any more.
    unsafe { bpf_sk_release(socket) };
    found
}

/// # Safety
/// `tcp` is a `struct tcp_sock` that lives, `offset` that of a 32-bit member.
#[inline(always)]
unsafe fn field(tcp: *const u8, offset: &'static u32) -> u32 {
    // SAFETY: the caller's word. Volatile: the loader has put another value there than the compiler sees.
    unsafe { ptr::read_volatile(tcp.add(ptr::read_volatile(offset) as usize).cast::<u32>()) }
}

/// The kernel's helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
