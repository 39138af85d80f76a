//! Sessions that a version with an older layout left in the kernel: they go on, under the programs of this one.
//!
//! A map whose format is still the same is shared: it is pinned for this layout as well, and the old program writes to it
//! until the new one is in its place. What only user space reads is converted. When the programs themselves need another
//! format, this is where their maps are copied; the layout that brings that has to write it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::MapInfo;
use pgsplice_ebpf::flow::{self, Flow, FlowKey, MAX_LABELS, SessionMeta};
use pgsplice_ebpf::{LAYOUT_VERSION, guard};

use super::pins::{PinError, Pins};
use super::splice::{SpliceMaps, text};
use super::sys;

/// The oldest layout that is understood.
const OLDEST: u32 = 2;

/// Maps whose format has not changed since [`OLDEST`].
const SHARED: [&str; 11] = [
    guard::LISTENERS,
    guard::NAMES,
    guard::COUNTERS,
    guard::DENY4,
    guard::DENY6,
    flow::FLOWS,
    flow::SESSIONS,
    flow::CONTROL,
    flow::WATCHES,
    flow::EVENTS,
    flow::SPLICE_COUNTERS,
];

/// Value of `META` in layout 2.
#[repr(C)]
#[derive(Clone, Copy)]
struct Meta2 {
    id: u64,
    accepted_ms: u64,
    bytes: [u64; 2],
    listener: u16,
    pool: u16,
    tls: u8,
    pad: [u8; 3],
    user: [u8; 32],
    database: [u8; 32],
}

/// Entries of `LABELS` in layout 2.
const LABELS_2: u32 = 1024;

/// The maps of an older layout.
#[derive(Debug)]
pub struct Older {
    pub layout: u32,
}

impl Older {
    /// What is to be taken over. Err: a layout that is not understood has sessions, and which.
    pub fn find(pins: &Pins) -> Result<Result<Option<Self>, u32>, PinError> {
        let mut found = None;
        for layout in pins.other_layouts()? {
            match layout {
                // One whose version was refused, or that was half removed, has left an empty folder.
                OLDEST..LAYOUT_VERSION if pins.maps_of(layout).join(flow::FLOWS).exists() => {
                    found = Some(Self { layout }).filter(|older| !older.is_outlived(pins));
                }
                _ if has_flows(pins, layout)? => return Ok(Err(layout)),
                _ => {}
            }
        }
        Ok(Ok(found))
    }

    /// Whether this layout has sessions in maps of its own.
    fn is_outlived(&self, pins: &Pins) -> bool {
        let id = |layout| MapInfo::from_pin(pins.maps_of(layout).join(flow::FLOWS)).map(|info| info.id());
        let is_another = id(LAYOUT_VERSION).is_ok_and(|ours| id(self.layout).is_ok_and(|theirs| ours != theirs));
        is_another && has_flows(pins, LAYOUT_VERSION).unwrap_or(true)
    }

    /// Pins for this layout what may be shared. Whatever an earlier attempt left there goes.
    pub fn share(&self, pins: &Pins) -> Result<(), PinError> {
        pins.remove_maps()?;
        for name in SHARED {
            let (from, to) = (pins.maps_of(self.layout).join(name), pins.maps().join(name));
            match sys::obj_get(&from).and_then(|map| sys::obj_pin(map.as_fd(), &to)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                shared => shared.map_err(|source| PinError::Io { what: "share", path: from, source })?,
            }
        }
        Ok(())
    }

    /// Tells who the sessions are, in this layout's terms.
    pub fn convert(&self, pins: &Pins, maps: &SpliceMaps) -> io::Result<()> {
        let slots: BTreeSet<u32> = maps.flows()?.into_iter().map(|(_, flow)| flow.slot).collect();
        if slots.is_empty() {
            return Ok(());
        }
        let folder = pins.maps_of(self.layout);
        let (meta, labels) = (sys::obj_get(&folder.join(flow::META))?, sys::obj_get(&folder.join(flow::LABELS))?);
        let mut names = Names::of_2(labels.as_fd())?;
        for slot in slots {
            let Some(old) = sys::lookup::<u32, Meta2>(meta.as_fd(), &slot)? else { continue };
            let new = SessionMeta {
                id: old.id,
                accepted_ms: old.accepted_ms,
                bytes: old.bytes,
                listener: old.listener,
                pool: old.pool,
                user: names.number(text(&old.user)),
                database: names.number(text(&old.database)),
                tls: old.tls,
                pad: [0; 7],
            };
            maps.set_meta(slot, &new);
        }
        names.0.iter().try_for_each(|(name, number)| maps.set_label(u32::from(*number), name))
    }
}

/// Labels by name.
struct Names(BTreeMap<String, u16>);

impl Names {
    fn of_2(labels: BorrowedFd<'_>) -> io::Result<Self> {
        let mut names = BTreeMap::new();
        for number in 0..LABELS_2 {
            let label = sys::lookup::<u32, flow::Label>(labels, &number)?;
            let name = label.map(|label| text(&label)).unwrap_or_default();
            if !name.is_empty() {
                names.insert(name, number as u16);
            }
        }
        Ok(Self(names))
    }

    /// 0 when all are used.
    fn number(&mut self, name: String) -> u16 {
        if name.is_empty() {
            return 0;
        }
        let next = self.0.values().max().map_or(1, |highest| highest + 1);
        match self.0.get(&name) {
            Some(number) => *number,
            None if u32::from(next) < MAX_LABELS => {
                self.0.insert(name, next);
                next
            }
            None => 0,
        }
    }
}

fn has_flows(pins: &Pins, layout: u32) -> Result<bool, PinError> {
    let path = pins.maps_of(layout).join(flow::FLOWS);
    if !fs::exists(&path).unwrap_or(true) {
        return Ok(false);
    }
    let map = sys::obj_get(&path).map_err(|source| PinError::Io { what: "open", path: path.clone(), source })?;
    Ok(!sys::is_empty(map.as_fd()).unwrap_or(false))
}

const _: () = assert!(size_of::<Meta2>() == 104 && size_of::<FlowKey>() + size_of::<Flow>() == 108);
