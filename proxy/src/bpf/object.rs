//! The object that `cargo xtask build-ebpf` made, loaded into the kernel.

use std::io;

use aya::EbpfLoader;
use aya::maps::MapError;
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError};
use pgsplice_ebpf::guard;

use super::maps::Maps;
use super::pins::Pins;

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
    #[error("cannot make the guard's maps: {0}")]
    Maps(#[source] EbpfError),
    #[error("the kernel's verifier refuses the guard's program; please report this with your kernel's version: {0}")]
    Refused(#[source] ProgramError),
    #[error("pinned map {name} is not of this layout: remove it (`rm -r {pins}`) while no pgsplice runs")]
    Foreign { name: &'static str, pins: String },
    #[error("the embedded object lacks {0}: it was not built from this source")]
    Incomplete(&'static str),
}

/// A loaded guard, attached to nothing yet.
pub struct Object {
    /// Keeps the program's descriptor.
    ebpf: Ebpf,
    program: &'static str,
}

impl Object {
    /// Loads the program onto the maps pinned under `pins`; makes and pins those that are missing.
    pub fn load(pins: &Pins) -> Result<(Self, Maps), LoadError> {
        lift_memlock();
        let folder = pins.maps();
        for (name, key, value, entries) in Maps::SHAPES {
            let Ok(info) = aya::maps::MapInfo::from_pin(folder.join(name)) else { continue };
            if (info.key_size(), info.value_size(), info.max_entries()) != (key, value, entries) {
                return Err(LoadError::Foreign { name, pins: folder.display().to_string() });
            }
        }
        let mut ebpf = EbpfLoader::new().default_map_pin_directory(&folder).load(OBJECT).map_err(from_loader)?;
        let maps = Maps::take(&mut ebpf)?;
        // Without multi-buffer frames a driver refuses the program above about 3.5 kB MTU; before 5.18 there are none.
        let program = match load(&mut ebpf, guard::PROGRAM_FRAGS) {
            Ok(()) => guard::PROGRAM_FRAGS,
            Err(with_frags) => match load(&mut ebpf, guard::PROGRAM) {
                Ok(()) => {
                    tracing::debug!("no multi-buffer XDP on this kernel: {with_frags}");
                    guard::PROGRAM
                }
                Err(error) => return Err(error),
            },
        };
        Ok((Self { ebpf, program }, maps))
    }

    /// The program that was loaded.
    pub fn guard(&mut self) -> Result<&mut Xdp, LoadError> {
        xdp(&mut self.ebpf, self.program)
    }
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    xdp(ebpf, name)?.load().map_err(|error| match os_error(&error) {
        Some(error) if error.raw_os_error() == Some(libc::EPERM) => LoadError::NotPermitted(copy(error)),
        _ => LoadError::Refused(error),
    })
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    ebpf.program_mut(name).and_then(|p| p.try_into().ok()).ok_or(LoadError::Incomplete(name))
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
