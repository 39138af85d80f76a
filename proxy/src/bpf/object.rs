//! The object that `cargo xtask build-ebpf` made, loaded into the kernel.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::{fs, io};

use aya::EbpfLoader;
use aya::maps::{Array, Map, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError};
use pgsplice_ebpf::flow::{self, Flow, FlowKey, SessionMeta, SessionState, Watch};
use pgsplice_ebpf::guard::MAX_LISTENERS;

use super::link::Xdp;
use super::maps::Maps;
use super::pins::{Hook, Pins};
use super::splice::{Parts, SpliceMaps};
use super::sys;

/// The programs and maps, as an ELF file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pgsplice-bpf.o"));

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "the kernel refuses BPF to this process ({0}): run pgsplice as root or give it CAP_BPF and CAP_NET_ADMIN \
         (CAP_SYS_ADMIN before Linux 5.8; in systemd: AmbientCapabilities=)"
    )]
    NotPermitted(io::Error),
    #[error("the kernel has no BPF ({0}): it needs CONFIG_BPF_SYSCALL")]
    NoBpf(io::Error),
    #[error("cannot make the maps: {0}")]
    Maps(#[source] EbpfError),
    #[error("cannot open the maps of the splice: {0}")]
    Splice(#[source] io::Error),
    #[error(
        "the kernel's verifier refuses the program {name}; please report this with your kernel's version: {source}"
    )]
    Refused { name: &'static str, source: ProgramError },
    #[error("pinned map {name} is not of this layout: remove it (`rm -r {pins}`) while no pgsplice runs")]
    Foreign { name: &'static str, pins: String },
    #[error("the embedded object lacks {0}: it was not built from this source")]
    Incomplete(&'static str),
}

/// The maps, and the programs: each is loaded when it is first asked for.
pub struct Object {
    /// Keeps the programs' descriptors.
    ebpf: Ebpf,
    loaded: BTreeMap<Xdp, &'static str>,
}

/// Name, key size, value size and capacity of a map, as the kernel reports them.
type Shape = (&'static str, u32, u32, u32);

/// Those that are made for as many sessions as the configuration says, and are made anew for another number as long as
/// they hold nothing.
fn sized(sessions: u32) -> [Shape; 4] {
    [
        (flow::FLOWS, size_of::<FlowKey>() as u32, size_of::<Flow>() as u32, sessions.saturating_mul(2)),
        (flow::SESSIONS, 4, size_of::<SessionState>() as u32, sessions),
        (flow::CONTROL, 4, 4, sessions),
        (flow::META, 4, size_of::<SessionMeta>() as u32, sessions),
    ]
}

const FIXED: [Shape; 4] = [
    (flow::WATCHES, size_of::<FlowKey>() as u32, size_of::<Watch>() as u32, flow::MAX_WATCHES),
    (flow::EVENTS, 0, 0, flow::EVENTS_BYTES),
    (flow::SPLICE_COUNTERS, 4, 8, flow::counter::COUNT),
    (flow::LABELS, 4, 64, flow::MAX_LABELS),
];

impl Object {
    /// Opens the maps pinned under `pins`; makes and pins those that are missing. `sessions`: see [`Kernel::load`].
    ///
    /// [`Kernel::load`]: super::Kernel::load
    pub fn load(pins: &Pins, sessions: u32) -> Result<(Self, Maps), LoadError> {
        lift_memlock();
        let folder = pins.maps();
        let sessions = capacity(pins, sessions)?;
        for (name, key, value, entries) in Maps::SHAPES.into_iter().chain(sized(sessions)).chain(FIXED) {
            let Ok(info) = aya::maps::MapInfo::from_pin(folder.join(name)) else { continue };
            if (info.key_size(), info.value_size(), info.max_entries()) != (key, value, entries) {
                return Err(LoadError::Foreign { name, pins: folder.display().to_string() });
            }
        }
        let mut loader = EbpfLoader::new();
        for (name, _, _, entries) in sized(sessions) {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.default_map_pin_directory(&folder).load(OBJECT).map_err(from_loader)?;
        let maps = Maps::take(&mut ebpf)?;
        Ok((Self { ebpf, loaded: BTreeMap::new() }, maps))
    }

    /// The maps of the splice, once.
    pub(super) fn splice_maps(&mut self, pins: &Pins) -> Result<SpliceMaps, LoadError> {
        let open = |name| sys::obj_get(&pins.maps().join(name)).map_err(LoadError::Splice);
        let sized = |name| -> Result<_, LoadError> {
            let info = aya::maps::MapInfo::from_pin(pins.maps().join(name));
            let info = info.map_err(|error| LoadError::Splice(io::Error::other(error)))?;
            Ok((open(name)?, info.max_entries()))
        };
        let mut bytes = 0;
        for name in [
            flow::FLOWS,
            flow::SESSIONS,
            flow::CONTROL,
            flow::META,
            flow::WATCHES,
            flow::EVENTS,
            flow::SPLICE_COUNTERS,
            flow::LABELS,
        ] {
            bytes += sys::memlock(open(name)?.as_fd());
        }
        if let Some(Map::PerCpuArray(ways)) = self.ebpf.map(flow::WAYS) {
            bytes += sys::memlock(ways.fd().as_fd());
        }
        let Some(Map::Array(unwatched)) = self.ebpf.map(flow::UNWATCHED) else {
            return Err(LoadError::Incomplete(flow::UNWATCHED));
        };
        bytes += sys::memlock(unwatched.fd().as_fd());
        let unwatched = unwatched.fd().as_fd().try_clone_to_owned().map_err(LoadError::Splice)?;
        let parts = Parts {
            flows: open(flow::FLOWS)?,
            watches: open(flow::WATCHES)?,
            sessions: sized(flow::SESSIONS)?,
            control: sized(flow::CONTROL)?,
            meta: sized(flow::META)?,
            unwatched: (unwatched, MAX_LISTENERS),
            labels: take::<Array<_, _>>(&mut self.ebpf, flow::LABELS)?,
            counters: take::<PerCpuArray<_, _>>(&mut self.ebpf, flow::SPLICE_COUNTERS)?,
            events: take::<RingBuf<_>>(&mut self.ebpf, flow::EVENTS)?,
            bytes,
        };
        SpliceMaps::new(parts).map_err(LoadError::Splice)
    }

    /// Without multi-buffer frames a driver refuses a program above about 3.5 kB MTU; before 5.18 there are none.
    pub fn xdp(&mut self, which: Xdp) -> Result<&mut aya::programs::Xdp, LoadError> {
        let name = match self.loaded.get(&which) {
            Some(name) => *name,
            None => {
                let [with_frags, without] = which.names();
                let name = match load_xdp(&mut self.ebpf, with_frags) {
                    Ok(()) => with_frags,
                    Err(refused) => {
                        load_xdp(&mut self.ebpf, without)?;
                        tracing::debug!("no multi-buffer XDP on this kernel: {refused}");
                        without
                    }
                };
                *self.loaded.entry(which).or_insert(name)
            }
        };
        program(&mut self.ebpf, name)
    }

    /// The program of a TC hook.
    pub fn tc(&mut self, hook: Hook) -> Result<&mut SchedClassifier, LoadError> {
        let name = if hook == Hook::Egress { "tc_keep_quiet" } else { "tc_splice" };
        let program: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            patiently(|| program.load()).map_err(|error| refused(name, error))?;
        }
        Ok(program)
    }
}

/// As many sessions as wanted, unless the maps that are there were made for another number and hold flows. Removes those
/// that do not fit and hold none.
fn capacity(pins: &Pins, wanted: u32) -> Result<u32, LoadError> {
    let folder = pins.maps();
    let Ok(info) = aya::maps::MapInfo::from_pin(folder.join(flow::FLOWS)) else { return Ok(wanted) };
    let there = info.max_entries() / 2;
    if there == wanted {
        return Ok(wanted);
    }
    let map = sys::obj_get(&folder.join(flow::FLOWS)).map_err(LoadError::Splice)?;
    let flows: Vec<(FlowKey, Flow)> = sys::lookup_all(map.as_fd()).map_err(LoadError::Splice)?;
    if !flows.is_empty() {
        tracing::warn!(there, wanted, "splice.max_sessions: the sessions in the kernel keep the maps as they are");
        return Ok(there);
    }
    // FLOWS last: as long as it is there, this is done again after a crash.
    for (name, ..) in sized(0).into_iter().rev() {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LoadError::Splice(error)),
            _ => {}
        }
    }
    Ok(wanted)
}

pub(super) fn take<T: TryFrom<aya::maps::Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError> {
    ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or(LoadError::Incomplete(name))
}

fn load_xdp(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program: &mut aya::programs::Xdp = program(ebpf, name)?;
    patiently(|| program.load()).map_err(|error| refused(name, error))
}

/// The verifier gives up with EAGAIN when a signal is pending, which io_uring raises in its own threads, too.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const TIMES: u32 = 20;
    let interrupted =
        |error: &ProgramError| os_error(error).is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    for _ in 1..TIMES {
        match load() {
            Err(error) if interrupted(&error) => {}
            done => return done,
        }
    }
    load()
}

fn refused(name: &'static str, source: ProgramError) -> LoadError {
    match os_error(&source) {
        Some(error) if error.raw_os_error() == Some(libc::EPERM) => LoadError::NotPermitted(copy(error)),
        _ => LoadError::Refused { name, source },
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(LoadError::Incomplete(name))
}

fn from_loader(error: EbpfError) -> LoadError {
    let os = match &error {
        EbpfError::MapError(error) => map_os_error(error),
        EbpfError::ProgramError(error) => os_error(error),
        _ => None,
    };
    match os.map(|e| (e.raw_os_error(), copy(e))) {
        Some((Some(libc::EPERM), e)) => LoadError::NotPermitted(e),
        Some((Some(libc::ENOSYS), e)) => LoadError::NoBpf(e),
        _ => LoadError::Maps(error),
    }
}

fn map_os_error(error: &MapError) -> Option<&io::Error> {
    match error {
        MapError::CreateError { io_error, .. } | MapError::IoError(io_error) => Some(io_error),
        MapError::SyscallError(e) => Some(&e.io_error),
        MapError::PinError { error: aya::pin::PinError::SyscallError(e), .. } => Some(&e.io_error),
        _ => None,
    }
}

fn os_error(error: &ProgramError) -> Option<&io::Error> {
    match error {
        ProgramError::LoadError { io_error, .. } => Some(io_error),
        ProgramError::SyscallError(e) => Some(&e.io_error),
        ProgramError::MapError(e) => map_os_error(e),
        _ => None,
    }
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK. Where it cannot be raised it seldom need be, so no error.
fn lift_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct lives through the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } != 0 {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bpf_get_task_stack`, the newest helper of Linux 5.9 (include/uapi/linux/bpf.h).
    const LAST_OF_5_9: i32 = 141;
    const BPF_JMP_CALL: u8 = 0x85;

    /// The newest helper that the program or what it calls makes use of.
    fn newest_helper(object: &aya_obj::Object, name: &str) -> i32 {
        let program = &object.programs[name];
        let function = &object.functions[&program.function_key()];
        let calls = function.instructions.iter().filter(|one| one.code == BPF_JMP_CALL && one.src_reg() == 0);
        calls.map(|call| call.imm).max().expect("it looks into maps")
    }

    #[test]
    fn the_guard_calls_nothing_that_linux_5_9_lacks() {
        let mut object = aya_obj::Object::parse(OBJECT).unwrap();
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_calls(&sections).unwrap();
        // `guard_frags` is for drivers of multi-buffer frames, which take Linux 5.18.
        let newest = newest_helper(&object, "guard");
        assert!(newest <= LAST_OF_5_9, "it calls helper {newest}");
        assert!(newest_helper(&object, "splice") > LAST_OF_5_9, "what the splice calls must be seen");
    }
}
