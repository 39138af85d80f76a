//! Buffers the kernel picks from when data arrives (a provided-buffer ring, Linux 5.19), so that waiting costs none.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// Bytes in a buffer of the ring, and the most a direction holds while it does not stream.
pub const SMALL: usize = 16 * 1024;
/// Bytes in the private buffer of a direction that streams.
pub const LARGE: usize = 128 * 1024;
/// Buffers in the ring: 2 MiB a thread. When they are all in use a direction gets a private one of [`SMALL`] bytes.
const COUNT: u16 = 128;
/// The only group of this ring.
pub const GROUP: u16 = 0;

/// The ring of buffers, registered with one io_uring. Must outlive that registration: see [`super::engine::Engine`].
pub struct Buffers {
    ring: Mapping,
    memory: Mapping,
    tail: u16,
}

/// Anonymous, page-aligned memory.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Buffers {
    /// Fails with EINVAL on kernels before 5.19.
    pub fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        let ring = Mapping::new(usize::from(COUNT) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(COUNT) * SMALL)?;
        // SAFETY: `ring` is page-aligned, as long as COUNT entries, and lives until it is unregistered.
        unsafe { submitter.register_buf_ring_with_flags(ring.start.as_ptr() as u64, COUNT, GROUP, 0)? };
        let mut buffers = Self { ring, memory, tail: 0 };
        (0..COUNT).for_each(|id| buffers.give_back(id));
        Ok(buffers)
    }

    /// The kernel takes no buffer any more, except for operations in flight.
    pub fn unregister(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        submitter.unregister_buf_ring(GROUP)
    }

    pub fn start_of(&self, id: u16) -> *mut u8 {
        assert!(id < COUNT, "the kernel names only buffers it was given");
        // SAFETY: COUNT buffers of SMALL bytes lie in `memory`, and `id` is one of them.
        unsafe { self.memory.start.as_ptr().add(usize::from(id) * SMALL) }
    }

    /// The kernel may use this buffer again.
    pub fn give_back(&mut self, id: u16) {
        let start = self.start_of(id) as u64;
        let entries = self.ring.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is masked into the ring's COUNT entries; user space alone writes entries at the tail.
        let entry = unsafe { &mut *entries.add(usize::from(self.tail & (COUNT - 1))) };
        entry.set_addr(start);
        entry.set_len(SMALL as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies inside the first entry and is written by us alone. Release: the entry comes first.
        unsafe { (*BufRingEntry::tail(entries).cast::<AtomicU16>()).store(self.tail, Ordering::Release) };
    }
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap at address 0"))?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
