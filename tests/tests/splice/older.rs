//! A version before, played by its own programs (`tests/fixtures/layout-2.o`, built from its sources and stripped of
//! what only a debugger reads) on maps of its own layout.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use xtask::lab::Host;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../fixtures/layout-2.o");
/// Formats that layout 2 shares with this one.
const SAME: [&str; 11] = [
    "LISTENERS",
    "NAMES",
    "COUNTERS",
    "DENY4",
    "DENY6",
    "FLOWS",
    "SESSIONS",
    "CONTROL",
    "WATCHES",
    "EVENTS",
    "SPLICE_COUNTERS",
];

/// Where a version before had its maps.
pub fn folder(host: &Host) -> PathBuf {
    pins(host).join("v2")
}

pub fn pins(host: &Host) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/sys/fs/bpf/pgsplice", host.holder()))
}

/// Puts what a killed pgsplice of today has left in the kernel into the hands of the version before: its programs in the
/// links, its maps under its folder, and nothing of today's.
pub fn take_back(host: &Host, pools: &[&str]) {
    let (new, old) = (pins(host).join("v3/maps"), folder(host).join("maps"));
    std::fs::create_dir_all(&old).unwrap();
    for name in SAME {
        MapData::from_pin(new.join(name)).unwrap().pin(old.join(name)).unwrap();
    }
    let sessions = capacity(&old.join("CONTROL"));
    let mut loader = EbpfLoader::new();
    for (name, entries) in [("FLOWS", 2 * sessions), ("SESSIONS", sessions), ("CONTROL", sessions), ("META", sessions)]
    {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.default_map_pin_directory(&old).load(OBJECT).unwrap();
    describe(&mut ebpf, &new, pools);
    replace_programs(&mut ebpf, &pins(host));
    std::fs::remove_dir_all(new.parent().unwrap()).unwrap();
}

fn capacity(map: &Path) -> u32 {
    aya::maps::MapInfo::from_pin(map).unwrap().max_entries()
}

/// Writes META and LABELS of layout 2.
fn describe(ebpf: &mut Ebpf, new: &Path, pools: &[&str]) {
    let today: Array<_, [u8; 48]> = Map::Array(MapData::from_pin(new.join("META")).unwrap()).try_into().unwrap();
    let mut metas: Array<_, [u8; 104]> = ebpf.take_map("META").unwrap().try_into().unwrap();
    // The first slots: a hand-off that is tried again takes the next.
    for slot in 0..32 {
        let mut meta = [0_u8; 104];
        // Id, time, bytes.
        meta[..32].copy_from_slice(&today.get(&slot, 0).unwrap()[..32]);
        for (at, number) in [(32, 1_u16), (34, 2)] {
            meta[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        meta[40..43].copy_from_slice(b"app");
        meta[72..76].copy_from_slice(b"shop");
        metas.set(slot, meta, 0).unwrap();
    }
    let mut labels: Array<_, [u8; 64]> = ebpf.take_map("LABELS").unwrap().try_into().unwrap();
    for (number, name) in (1..).zip(pools) {
        let mut label = [0; 64];
        label[..name.len()].copy_from_slice(name.as_bytes());
        labels.set(number, label, 0).unwrap();
    }
}

/// In every link that is there.
fn replace_programs(ebpf: &mut Ebpf, pins: &Path) {
    for (folder, name) in [("links", "splice_frags"), ("tc-in", "tc_splice"), ("tc-out", "tc_keep_quiet")] {
        for link in std::fs::read_dir(pins.join(folder)).unwrap() {
            let link = FdLink::from(PinnedLink::from_pin(link.unwrap().path()).unwrap());
            if folder == "links" {
                let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
                if program.fd().is_err() {
                    program.load().unwrap();
                }
                let id = program.attach_to_link(XdpLink::try_from(link).unwrap()).unwrap();
                // Pinned: it stays when this descriptor closes.
                drop(program.take_link(id).unwrap());
            } else {
                let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
                if program.fd().is_err() {
                    program.load().unwrap();
                }
                let id = program.attach_to_link(SchedClassifierLink::try_from(link).unwrap()).unwrap();
                drop(program.take_link(id).unwrap());
            }
        }
    }
}
