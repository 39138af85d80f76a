//! The two bpf(2) commands that aya has no name for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// linux/bpf.h, enum bpf_cmd.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of union bpf_attr that BPF_OBJ_GET reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The pinned object at this path.
fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: attr and the path it points to live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &attr, size_of::<ObjGet>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes the program of the pinned link off its interface now (Linux 5.9). Removing the pin alone does so too, but some
/// milliseconds later, and until then the interface is busy.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let link = obj_get(path)?;
    let attr = link.as_raw_fd() as u32;
    // SAFETY: attr lives through the call; the command reads one u32, the link's descriptor.
    if unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &attr, size_of::<u32>()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
