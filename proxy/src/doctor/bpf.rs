//! bpf(2) as far as trying it out needs.

use std::io;

/// linux/bpf.h, enum bpf_cmd, bpf_attach_type.
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;

/// Whether programs can be put on an interface by tcx links. EINVAL: this kernel has none.
pub fn try_tcx(ifindex: u32) -> io::Result<()> {
    // Longer than what the command reads; the kernel wants the rest to be zero.
    let mut attr = [0_u32; 32];
    (attr[0], attr[1]) = (ifindex, TCX_INGRESS);
    // SAFETY: attr lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, attr.as_mut_ptr(), size_of_val(&attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
