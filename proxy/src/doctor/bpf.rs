//! bpf(2) as far as trying it out needs: commands on objects that are gone when the descriptors are.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/bpf.h, enum bpf_cmd.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_QUERY: libc::c_long = 16;

/// enum bpf_prog_type, bpf_map_type, bpf_attach_type.
const SK_SKB: u32 = 14;
const SOCKHASH: u32 = 18;
const SK_SKB_VERDICT: u32 = 38;
const TCX_INGRESS: u32 = 46;

/// Longer than what any of these commands reads; the kernel wants the rest to be zero.
type Attr = [u64; 16];

fn words(low: u32, high: u32) -> u64 {
    let (low, high) = (low.to_ne_bytes(), high.to_ne_bytes());
    u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])
}

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: attr lives through the call, and what it points to belongs to the caller, who borrows it that long.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn object(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    // SAFETY: these commands answer with a descriptor that is ours alone.
    bpf(command, attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether programs can be put on an interface by tcx links. EINVAL: this kernel has none.
pub fn try_tcx(ifindex: u32) -> io::Result<()> {
    let mut attr: Attr = [0; 16];
    attr[0] = words(ifindex, TCX_INGRESS);
    bpf(PROG_QUERY, &mut attr).map(drop)
}

/// Puts a connected TCP socket into a map whose program sees what the socket receives.
pub fn try_sockmap(socket: BorrowedFd<'_>) -> io::Result<()> {
    // r0 = SK_PASS; exit
    let instructions: [u64; 2] = [u64::from_le_bytes([0xb7, 0, 0, 0, 1, 0, 0, 0]), 0x95];
    let mut attr: Attr = [0; 16];
    attr[0] = words(SK_SKB, instructions.len() as u32);
    attr[1] = instructions.as_ptr() as u64;
    attr[2] = c"GPL".as_ptr() as u64;
    let program = object(PROG_LOAD, &mut attr)?;

    let mut attr: Attr = [0; 16];
    attr[0] = words(SOCKHASH, size_of::<u64>() as u32);
    attr[1] = words(size_of::<u64>() as u32, 1);
    let map = object(MAP_CREATE, &mut attr)?;

    let mut attr: Attr = [0; 16];
    attr[0] = words(map.as_raw_fd() as u32, program.as_raw_fd() as u32);
    attr[1] = words(SK_SKB_VERDICT, 0);
    bpf(PROG_ATTACH, &mut attr)?;

    let (key, value) = (1u64, socket.as_raw_fd() as u64);
    let mut attr: Attr = [0; 16];
    attr[0] = words(map.as_raw_fd() as u32, 0);
    attr[1] = &raw const key as u64;
    attr[2] = &raw const value as u64;
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}
