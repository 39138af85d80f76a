//! The bpf(2) commands that aya has no name for, or none that threads may share.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// linux/bpf.h, enum bpf_cmd.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of union bpf_attr that BPF_OBJ_PIN and BPF_OBJ_GET read.
#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Flags of BPF_MAP_UPDATE_ELEM.
pub const BPF_ANY: u64 = 0;
pub const BPF_NOEXIST: u64 = 1;

/// The part of union bpf_attr that commands on one element read.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part that BPF_OBJ_GET_INFO_BY_FD reads.
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The part that BPF_MAP_LOOKUP_BATCH reads.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part that BPF_PROG_LOAD needs; the rest of it is zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: attr, and what it points to in each call below, lives through the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The element with this key. `K` and `V` must be the map's own types, plain data of any bits.
pub fn lookup<K: Copy, V: Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: the kernel has filled all of it.
        Ok(()) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn update<K: Copy, V: Copy>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr)
}

/// Whether there was one.
pub fn delete<K: Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr =
        Element { map_fd: map.as_raw_fd() as u32, pad: 0, key: std::ptr::from_ref(key) as u64, value: 0, flags: 0 };
    match bpf(BPF_MAP_DELETE_ELEM, &mut attr) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a map of any type holds nothing. For hash maps, whose keys are at most 512 bytes here.
pub fn is_empty(map: BorrowedFd<'_>) -> io::Result<bool> {
    let mut next = [0_u8; 512];
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        // None: the first key.
        key: 0,
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Every element of a hash map (Linux 5.6).
pub fn lookup_all<K: Copy, V: Copy>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    // More than any bucket of a hash map that is not attacked can hold.
    const AT_ONCE: usize = 4096;
    let mut all = Vec::new();
    let mut keys = vec![MaybeUninit::<K>::uninit(); AT_ONCE];
    let mut values = vec![MaybeUninit::<V>::uninit(); AT_ONCE];
    // Where the next call goes on: for hash maps the number of a bucket.
    let mut position = 0_u32;
    let mut first = true;
    loop {
        let mut next = 0_u32;
        let mut attr = Batch {
            in_batch: if first { 0 } else { &raw const position as u64 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let done = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let last = match done {
            Ok(()) => false,
            // The end; what was found before it counts.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
            // SAFETY: the kernel has filled the first `count` of both.
            all.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        if last {
            return Ok(all);
        }
        (first, position) = (false, next);
    }
}

/// The pinned object at this path.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: attr and the path it points to live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &attr, size_of::<Obj>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins an object at this path, where nothing is yet.
pub fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &mut Obj { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 })
}

/// A socket filter that lets nothing through, for SO_ATTACH_BPF. One for all sockets: a classic filter (SO_ATTACH_FILTER)
/// is translated and compiled for each anew.
pub fn load_drop_all() -> io::Result<OwnedFd> {
    const SOCKET_FILTER: u32 = 1;
    // linux/bpf.h, struct bpf_insn: `r0 = 0; exit`.
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut prog_name = [0; 16];
    prog_name[..8].copy_from_slice(b"drop_all");
    let attr = ProgLoad {
        prog_type: SOCKET_FILTER,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: attr, the instructions and the license live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &attr, size_of::<ProgLoad>()) };
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

/// What the kernel accounts for a map, in bytes; 0 where it does not tell.
pub fn memlock(map: BorrowedFd<'_>) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The interface of a pinned XDP or tcx link: 0 once that is gone. `struct bpf_link_info`: type, id, prog_id, padding, then
/// for both first the ifindex.
pub fn link_ifindex(path: &Path) -> io::Result<u32> {
    let link = obj_get(path)?;
    let mut info = [0_u32; 32];
    let info_len = size_of_val(&info) as u32;
    let mut attr = Info { bpf_fd: link.as_raw_fd() as u32, info_len, info: info.as_mut_ptr() as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info[4])
}
