//! The maps of the splice as Rust types: what stands in `pgsplice_ebpf::flow`. Every method may be called from any
//! thread at any time; hash maps by bpf(2), arrays by memory shared with the kernel.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use parking_lot::Mutex;
use pgsplice_ebpf::flow::{self, Event, Flow, FlowKey, Label, SessionMeta, SessionState, Watch, counter};

use super::sys;

pub struct SpliceMaps {
    flows: OwnedFd,
    watches: OwnedFd,
    sessions: Mapped<SessionState>,
    control: Mapped<u32>,
    meta: Mapped<SessionMeta>,
    unwatched: Mapped<u32>,
    labels: Mutex<Array<MapData, Label>>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<Option<RingBuf<MapData>>>,
    bytes: u64,
}

/// What `Object` hands over.
pub(super) struct Parts {
    pub flows: OwnedFd,
    pub watches: OwnedFd,
    pub sessions: (OwnedFd, u32),
    pub control: (OwnedFd, u32),
    pub meta: (OwnedFd, u32),
    pub unwatched: (OwnedFd, u32),
    pub labels: Array<MapData, Label>,
    pub counters: PerCpuArray<MapData, u64>,
    pub events: RingBuf<MapData>,
    pub bytes: u64,
}

/// The events of the programs, for one reader.
pub struct Events(RingBuf<MapData>);

/// An array map with BPF_F_MMAPABLE, seen as memory: elements lie 8-aligned one behind the other (kernel/bpf/arraymap.c).
struct Mapped<T> {
    start: NonNull<u8>,
    entries: u32,
    length: usize,
    of: std::marker::PhantomData<T>,
    _map: OwnedFd,
}

// SAFETY: the memory is shared with the kernel anyway; every access is volatile or atomic and within bounds.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl SpliceMaps {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        Ok(Self {
            flows: parts.flows,
            watches: parts.watches,
            sessions: Mapped::new(parts.sessions)?,
            control: Mapped::new(parts.control)?,
            meta: Mapped::new(parts.meta)?,
            unwatched: Mapped::new(parts.unwatched)?,
            labels: Mutex::new(parts.labels),
            counters: parts.counters,
            events: Mutex::new(Some(parts.events)),
            bytes: parts.bytes,
        })
    }

    /// Sessions there is room for; slots are below this.
    pub fn capacity(&self) -> u32 {
        self.sessions.entries.min(self.control.entries).min(self.meta.entries)
    }

    /// Memory of all these maps, in bytes, as the kernel accounts it.
    pub fn map_bytes(&self) -> u64 {
        self.bytes
    }

    /// EEXIST: there is one with this key. E2BIG: the map is full.
    pub fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> io::Result<()> {
        sys::update(self.flows.as_fd(), key, flow, sys::BPF_NOEXIST)
    }

    /// Whether there was one.
    pub fn remove_flow(&self, key: &FlowKey) -> io::Result<bool> {
        sys::delete(self.flows.as_fd(), key)
    }

    pub fn flow(&self, key: &FlowKey) -> io::Result<Option<Flow>> {
        sys::lookup(self.flows.as_fd(), key)
    }

    /// All of them. One that is made or removed meanwhile may be in it or not.
    pub fn flows(&self) -> io::Result<Vec<(FlowKey, Flow)>> {
        sys::lookup_all(self.flows.as_fd())
    }

    /// Each number is one the kernel wrote; they may be of different packets.
    pub fn state(&self, slot: u32) -> SessionState {
        self.sessions.read(slot).unwrap_or_default()
    }

    pub fn set_state(&self, slot: u32, state: &SessionState) {
        self.sessions.write(slot, state);
    }

    pub fn control(&self, slot: u32) -> u32 {
        self.control.word(slot).map_or(flow::control::FREE, |word| word.load(Ordering::Acquire))
    }

    /// In force for the next packet.
    pub fn set_control(&self, slot: u32, value: u32) {
        if let Some(word) = self.control.word(slot) {
            word.store(value, Ordering::SeqCst);
        }
    }

    pub fn meta(&self, slot: u32) -> SessionMeta {
        self.meta.read(slot).unwrap_or_default()
    }

    pub fn set_meta(&self, slot: u32, meta: &SessionMeta) {
        self.meta.write(slot, meta);
    }

    /// By number; the empty ones are free.
    pub fn labels(&self) -> io::Result<Vec<String>> {
        let labels = self.labels.lock();
        (0..flow::MAX_LABELS)
            .map(|index| labels.get(&index, 0).map(|label| text(&label)).map_err(io::Error::other))
            .collect()
    }

    /// Longer names are cut at 64 bytes.
    pub fn set_label(&self, index: u32, name: &str) -> io::Result<()> {
        let mut label = [0; mem::size_of::<Label>()];
        label.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        self.labels.lock().set(index, label, 0).map_err(io::Error::other)
    }

    pub fn watch(&self, key: &FlowKey) -> io::Result<Option<Watch>> {
        sys::lookup(self.watches.as_fd(), key)
    }

    /// Whether the clients of the listener with this id are watched from their SYN on; at first they are.
    pub fn watch_from_syn(&self, listener: u32, on: bool) {
        if let Some(word) = self.unwatched.word(listener) {
            word.store(u32::from(!on), Ordering::Relaxed);
        }
    }

    /// Nothing has been seen of this connection; what is from now on counts.
    pub fn start_watch(&self, key: &FlowKey) -> io::Result<()> {
        sys::update(self.watches.as_fd(), key, &Watch::default(), sys::BPF_ANY)
    }

    pub fn stop_watch(&self, key: &FlowKey) -> io::Result<()> {
        sys::delete(self.watches.as_fd(), key).map(drop)
    }

    /// Added up over the CPUs, by `flow::counter`.
    pub fn counters(&self) -> io::Result<[u64; counter::COUNT as usize]> {
        let mut all = [0; counter::COUNT as usize];
        for (index, sum) in all.iter_mut().enumerate() {
            *sum = self.counters.get(&(index as u32), 0).map_err(io::Error::other)?.iter().sum();
        }
        Ok(all)
    }

    /// `None` for everybody but the first who asks.
    pub fn take_events(&self) -> Option<Events> {
        self.events.lock().take().map(Events)
    }
}

/// Up to the first zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Events {
    /// Those that wait, one by one.
    #[expect(clippy::should_implement_trait, reason = "it may have more after it had none")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            if item.len() == mem::size_of::<Event>() {
                // SAFETY: as long as an Event, which is integers only: any bits are a value.
                return Some(unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) });
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer keeps its descriptor open for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl<T: Copy> Mapped<T> {
    const STRIDE: usize = mem::size_of::<T>().next_multiple_of(8);

    fn new((map, entries): (OwnedFd, u32)) -> io::Result<Self> {
        let length = Self::STRIDE * entries as usize;
        // SAFETY: a new mapping, of which only `length` bytes are ever touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap at address 0"))?;
        Ok(Self { start, entries, length, of: std::marker::PhantomData, _map: map })
    }

    fn at(&self, index: u32) -> Option<*mut T> {
        // SAFETY: `entries` strides lie in the mapping, which is page-aligned, and a stride is 8-aligned.
        (index < self.entries).then(|| unsafe { self.start.as_ptr().add(index as usize * Self::STRIDE) }.cast())
    }

    fn read(&self, index: u32) -> Option<T> {
        // SAFETY: within the mapping and aligned; the kernel writes it at any time, hence volatile, and any bits are a
        // value of the types these maps have.
        self.at(index).map(|at| unsafe { at.read_volatile() })
    }

    fn write(&self, index: u32, value: &T) {
        if let Some(at) = self.at(index) {
            // SAFETY: as above.
            unsafe { at.write_volatile(*value) };
        }
    }
}

impl Mapped<u32> {
    fn word(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: within the mapping, aligned, and accessed only atomically; the mapping lives as long as `self`.
        self.at(index).map(|at| unsafe { AtomicU32::from_ptr(at) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
