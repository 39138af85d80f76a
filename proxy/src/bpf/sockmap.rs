//! The sockmap road's object: its maps, the ledger mapped into our memory, and the verdict attached to the map of
//! sockets. Nothing of it is pinned; it goes with the process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf, SockMap};
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader};
use pgsplice_ebpf::sockmap::{self as shared, CLOSED_BYTES, Direction};

use super::btf::{self, BtfError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pgsplice-sockmap.o"));

/// linux/bpf.h, enum bpf_cmd and enum bpf_attach_type; aya has no name for the latter: a verdict without a parser.
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_SK_SKB_VERDICT: u32 = 38;

/// Sessions an engine can join at most: the ring buffer must hold a record for each direction.
pub const MAX_SESSIONS: u32 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SockmapError {
    #[error(
        "the kernel refuses BPF to this process ({0}): the sockmap road needs root, or CAP_BPF, CAP_NET_ADMIN and \
         CAP_PERFMON"
    )]
    NotPermitted(io::Error),
    #[error(transparent)]
    Types(#[from] BtfError),
    #[error("cannot make the sockmap road's maps: {0}")]
    Maps(#[source] EbpfError),
    /// With the verifier's last word, if it said any.
    #[error("the kernel refuses the sockmap road's program, as it does without CAP_PERFMON: {0}")]
    Refused(String),
    #[error("no verdict without a parser on this kernel ({0}): the sockmap road needs Linux 5.13 or later")]
    NoVerdict(io::Error),
    #[error("cannot map the sockmap road's ledger: {0}")]
    Ledger(io::Error),
    #[error("the embedded object lacks {0}: it was not built from this source")]
    Incomplete(&'static str),
}

/// Sockets that the program joins, in pairs: see [`shared`] for what an index is.
pub struct Joints {
    sockets: SockMap<MapData>,
    cookies: HashMap<MapData, u64, u32>,
    ledger: Ledger,
    closed: RingBuf<MapData>,
    /// Keeps the program's descriptor.
    _ebpf: Ebpf,
}

/// `LEDGER` in our own memory.
struct Ledger {
    start: NonNull<Direction>,
    length: usize,
    _map: MapData,
}

// SAFETY: the mapping is shared memory that any thread may read and write, by atomic operations only.
unsafe impl Send for Ledger {}

impl Joints {
    /// With room for this many sessions, at least 1 and at most [`MAX_SESSIONS`].
    pub fn load(sessions: u32) -> Result<Self, SockmapError> {
        let sessions = sessions.clamp(1, MAX_SESSIONS);
        // The first member of `struct tcp_sock` is, some levels down, a `struct sock`.
        let members = [("tcp_sock", "write_seq"), ("sock", "sk_wmem_queued"), ("sock", "sk_sndbuf")];
        let [write_seq, queued, sndbuf] = btf::offsets(members)?;
        let page = page_size() as u32;
        let mut ebpf = EbpfLoader::new()
            // It would read the kernel's types once more, for relocations that the program has none of.
            .btf(None)
            .override_global(shared::OFFSET_WRITE_SEQ, &write_seq, true)
            .override_global(shared::OFFSET_WMEM_QUEUED, &queued, true)
            .override_global(shared::OFFSET_SNDBUF, &sndbuf, true)
            .map_max_entries(shared::SOCKETS, 2 * sessions)
            .map_max_entries(shared::COOKIES, 2 * sessions)
            .map_max_entries(shared::LEDGER, 2 * sessions)
            .map_max_entries(shared::CLOSED, (2 * sessions * CLOSED_BYTES).max(page).next_power_of_two())
            .load(OBJECT)
            .map_err(from_loader)?;
        fn one<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SockmapError> {
            ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or(SockmapError::Incomplete(name))
        }
        let sockets: SockMap<MapData> = one(&mut ebpf, shared::SOCKETS)?;
        let cookies = one(&mut ebpf, shared::COOKIES)?;
        let closed = one(&mut ebpf, shared::CLOSED)?;
        let Some(Map::Array(ledger)) = ebpf.take_map(shared::LEDGER) else {
            return Err(SockmapError::Incomplete(shared::LEDGER));
        };
        let ledger = Ledger::map(ledger, 2 * sessions as usize).map_err(SockmapError::Ledger)?;
        let program: &mut SkSkb = ebpf
            .program_mut(shared::PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(SockmapError::Incomplete(shared::PROGRAM))?;
        program.load().map_err(refused)?;
        let program = program.fd().map_err(refused)?.as_fd();
        attach(program, sockets.fd().as_fd()).map_err(SockmapError::NoVerdict)?;
        Ok(Self { sockets, cookies, ledger, closed, _ebpf: ebpf })
    }

    /// The program judges what arrives at `socket` from now on. Its direction's gate is closed and nothing is counted.
    ///
    /// Fails if the socket is not in ESTABLISHED, or has an upper layer protocol (TLS, MPTCP).
    pub fn insert(&mut self, index: u32, socket: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
        self.ledger.reset(index);
        self.cookies.insert(cookie, index, 0).map_err(os_error)?;
        if let Err(error) = self.sockets.set(index, &socket, 0) {
            let _ = self.cookies.remove(&cookie);
            return Err(os_error(error));
        }
        Ok(())
    }

    /// The socket is a plain one again. What is queued to it by the program and not sent yet is lost, and the program may
    /// still be at work on it until its lock was taken once more.
    pub fn remove(&mut self, index: u32, cookie: u64) {
        // ENOENT, EINVAL: the kernel had removed a socket that was closed or reset.
        let _ = self.sockets.clear_index(&index);
        let _ = self.cookies.remove(&cookie);
    }

    /// Bytes redirected and bytes passed up, from `index`'s socket. Exact only while its lock keeps the program out.
    pub fn counts(&self, index: u32) -> (u64, u64) {
        let direction = self.ledger.at(index);
        (direction.redirected.load(Ordering::Acquire), direction.passed.load(Ordering::Acquire))
    }

    /// Opens the gate if this many bytes were passed up. What was passed before must have been sent on.
    pub fn arm(&self, index: u32, passed: u64) {
        self.ledger.at(index).armed.store(passed, Ordering::Release);
    }

    /// A direction whose gate the program has closed. One that was removed since may be named.
    pub fn next_closed(&mut self) -> Option<u32> {
        let item = self.closed.next()?;
        item.get(0..4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// Readable when [`Self::next_closed`] has something.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.closed.as_fd()
    }
}

/// What of a [`Direction`] is of use here.
struct View<'a> {
    armed: &'a AtomicU64,
    redirected: &'a AtomicU64,
    passed: &'a AtomicU64,
}

impl Ledger {
    fn map(map: MapData, directions: usize) -> io::Result<Self> {
        let length = (directions * size_of::<Direction>()).next_multiple_of(page_size());
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping touches no memory of ours.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, map.fd().as_fd().as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap at address 0"))?;
        Ok(Self { start, length, _map: map })
    }

    fn element(&self, index: u32) -> *mut Direction {
        assert!((index as usize) < self.length / size_of::<Direction>(), "an index of this ledger");
        // SAFETY: just checked to lie in the mapping.
        unsafe { self.start.as_ptr().add(index as usize) }
    }

    fn at(&self, index: u32) -> View<'_> {
        let it = self.element(index);
        // SAFETY: aligned (the mapping starts a page) and in the mapping; both sides access these words whole.
        unsafe {
            View {
                armed: AtomicU64::from_ptr(&raw mut (*it).armed),
                redirected: AtomicU64::from_ptr(&raw mut (*it).redirected),
                passed: AtomicU64::from_ptr(&raw mut (*it).passed),
            }
        }
    }

    /// Only while the program has no socket of this index.
    fn reset(&self, index: u32) {
        // SAFETY: in the mapping; nobody else writes there now, and the next system call orders it before the program.
        unsafe { self.element(index).write_volatile(Direction::NEW) };
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and every view borrows from `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn attach(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of union bpf_attr that BPF_PROG_ATTACH reads.
    #[repr(C)]
    struct ProgAttach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let (target_fd, attach_bpf_fd) = (map.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let attr = ProgAttach { target_fd, attach_bpf_fd, attach_type: BPF_SK_SKB_VERDICT, attach_flags: 0 };
    // SAFETY: attr lives through the call.
    if unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attr, size_of::<ProgAttach>()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn from_loader(error: EbpfError) -> SockmapError {
    match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EPERM) => {
            SockmapError::NotPermitted(io_error)
        }
        error => SockmapError::Maps(error),
    }
}

fn refused(error: ProgramError) -> SockmapError {
    match error {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            SockmapError::NotPermitted(io_error)
        }
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
            SockmapError::Refused(last.map_or_else(|| io_error.to_string(), str::to_owned))
        }
        error => SockmapError::Refused(error.to_string()),
    }
}

fn os_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf takes no pointer; the page size is always known.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}
