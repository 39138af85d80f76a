//! The limit on open files, which bounds how many sessions one process can hold.

use anyhow::{Result, ensure};

/// Raises this process's soft limit to the hard one; children inherit it. Returns the limit.
pub fn descriptors() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit through a valid pointer.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    ensure!(read == 0, "getrlimit: {}", std::io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one rlimit through a valid pointer.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    ensure!(set == 0, "setrlimit: {}", std::io::Error::last_os_error());
    Ok(limit.rlim_max)
}

/// `wanted`, or as many sessions as a proxy can hold with two descriptors each and some for itself.
pub fn sessions(wanted: usize) -> Result<usize> {
    let possible = descriptors()?.saturating_sub(400) / 2;
    Ok(wanted.min(usize::try_from(possible)?))
}
