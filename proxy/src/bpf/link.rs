//! The program's place on an interface: taken over from the process before us where there is one, with no packet
//! unguarded in between.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpError, XdpMode as AyaMode};

use super::netlink::{XdpState, xdp_state};
use super::object::{LoadError, Object};
use super::pins::{PinError, Pins};
use super::sys;
use crate::config::XdpMode;

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("guard.interfaces: there is no interface {0}: `ip link` lists them")]
    NoInterface(String),
    #[error(
        "guard.interfaces: {interface} (driver {driver}) takes no native XDP ({source}): \
         set guard.mode to \"auto\" or \"generic\""
    )]
    NoNative { interface: String, driver: String, source: io::Error },
    #[error(
        "guard.interfaces: {interface} has another XDP program (id {program}): \
         detach it (`ip link set dev {interface} xdp off`) or leave the interface out"
    )]
    Occupied { interface: String, program: u32 },
    #[error("guard.interfaces: cannot attach to {interface} in {mode} mode: {source}")]
    Refused { interface: String, mode: AttachMode, source: io::Error },
    #[error("guard.interfaces: this kernel cannot keep XDP attached to {0} by a link: it needs Linux 5.9 or later")]
    NoLinks(String),
    #[error("cannot pin the link at {}: {source}", .path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Object(#[from] LoadError),
}

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver, before the kernel makes anything of the frame.
    Native,
    /// In the kernel's stack, on any interface, at a higher cost a packet.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    pub interface: String,
    pub mode: AttachMode,
}

/// The interfaces that have the program. Dropping it leaves them so: only the pins hold the links.
#[derive(Debug, Default)]
pub struct Interfaces {
    attached: BTreeMap<String, AttachMode>,
}

impl Interfaces {
    pub fn attachments(&self) -> Vec<Attachment> {
        self.attached.iter().map(|(interface, mode)| Attachment { interface: interface.clone(), mode: *mode }).collect()
    }

    /// Puts the program on exactly these interfaces. Those that have it, from us or from a process before us, get
    /// this program in place of theirs at once. An error leaves those done so far.
    pub fn set(
        &mut self,
        object: &mut Object,
        pins: &Pins,
        interfaces: &[String],
        mode: XdpMode,
    ) -> Result<(), AttachError> {
        for interface in interfaces {
            let attached = attach(object.guard()?, pins, interface, mode)?;
            self.attached.insert(interface.clone(), attached);
        }
        for old in pins.linked()?.into_iter().filter(|old| !interfaces.contains(old)) {
            detach(pins, &old)?;
            self.attached.remove(&old);
            tracing::info!(interface = old, "XDP program detached");
        }
        Ok(())
    }

    /// Takes the program off every interface.
    pub fn clear(&mut self, pins: &Pins) -> Result<(), AttachError> {
        for interface in pins.linked()? {
            detach(pins, &interface)?;
        }
        self.attached.clear();
        Ok(())
    }
}

fn attach(program: &mut Xdp, pins: &Pins, interface: &str, mode: XdpMode) -> Result<AttachMode, AttachError> {
    let ifindex = ifindex(interface).ok_or_else(|| AttachError::NoInterface(interface.into()))?;
    if let Some(adopted) = adopt(program, pins, interface, ifindex, mode)? {
        return Ok(adopted);
    }
    let refused = |mode, source| match (mode, occupant(ifindex)) {
        (_, Some(program)) => AttachError::Occupied { interface: interface.into(), program },
        (AttachMode::Native, None) => {
            AttachError::NoNative { interface: interface.into(), driver: driver(interface), source }
        }
        (AttachMode::Generic, None) => AttachError::Refused { interface: interface.into(), mode, source },
    };
    let attempt = |program: &mut Xdp, mode: AttachMode| {
        let aya_mode = match mode {
            AttachMode::Native => AyaMode::Driver,
            AttachMode::Generic => AyaMode::Skb,
        };
        match program.attach_to_if_index(ifindex, aya_mode) {
            Ok(id) => {
                let link = program.take_link(id).map_err(|e| refused(mode, os_error(e)))?;
                FdLink::try_from(link).map_err(|_| AttachError::NoLinks(interface.into()))
            }
            Err(e) => Err(refused(mode, os_error(e))),
        }
    };
    let (link, attached) = match mode {
        XdpMode::Native => (attempt(program, AttachMode::Native)?, AttachMode::Native),
        XdpMode::Generic => (attempt(program, AttachMode::Generic)?, AttachMode::Generic),
        XdpMode::Auto => match attempt(program, AttachMode::Native) {
            Ok(link) => (link, AttachMode::Native),
            Err(AttachError::NoNative { driver, source, .. }) => {
                let link = attempt(program, AttachMode::Generic)?;
                tracing::warn!(interface, driver, "no native XDP ({source}): the guard runs in generic mode");
                (link, AttachMode::Generic)
            }
            Err(e) => return Err(e),
        },
    };
    let path = pins.link(interface);
    link.pin(&path).map_err(|e| AttachError::Pin { path, source: io::Error::other(e) })?;
    tracing::info!(interface, mode = %attached, "XDP program attached");
    Ok(attached)
}

/// Takes over the link that is pinned for the interface: the kernel swaps the programs in one step. `None` if there
/// is none or it is of no use (its interface is gone, its mode is not the one asked for): then it is removed.
fn adopt(
    program: &mut Xdp,
    pins: &Pins,
    interface: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<Option<AttachMode>, AttachError> {
    let path = pins.link(interface);
    if !path.exists() {
        return Ok(None);
    }
    let replaced = PinnedLink::from_pin(&path)
        .ok()
        .and_then(|pinned| XdpLink::try_from(FdLink::from(pinned)).ok())
        .and_then(|link| program.attach_to_link(link).ok())
        // Ours to drop: the pin keeps the link.
        .and_then(|id| program.take_link(id).ok())
        .is_some();
    let ours = program.info().map(|info| info.id()).ok();
    let state = xdp_state(ifindex).unwrap_or(XdpState::None);
    let adopted = match (mode, state) {
        (XdpMode::Auto | XdpMode::Native, XdpState::Native { program }) if Some(program) == ours => {
            Some(AttachMode::Native)
        }
        (XdpMode::Auto | XdpMode::Generic, XdpState::Generic { program }) if Some(program) == ours => {
            Some(AttachMode::Generic)
        }
        _ => None,
    };
    match (replaced, adopted) {
        (true, Some(mode)) => {
            tracing::info!(interface, %mode, "XDP program replaced in the pinned link");
            Ok(Some(mode))
        }
        _ => {
            detach(pins, interface)?;
            Ok(None)
        }
    }
}

fn detach(pins: &Pins, interface: &str) -> Result<(), AttachError> {
    let path = pins.link(interface);
    if let Err(error) = sys::detach_pinned_link(&path) {
        // Its interface is gone already, or the pin is no link.
        tracing::debug!(interface, "nothing to detach: {error}");
    }
    fs::remove_file(&path).map_err(|source| PinError::Io { what: "remove", path, source }.into())
}

/// The program that somebody else has on the interface.
fn occupant(ifindex: u32) -> Option<u32> {
    match xdp_state(ifindex).ok()? {
        XdpState::Native { program } | XdpState::Generic { program } | XdpState::Offloaded { program } => Some(program),
        XdpState::Several => Some(0),
        XdpState::None => None,
    }
}

/// `None` if there is no such interface.
pub fn ifindex(interface: &str) -> Option<u32> {
    let name = std::ffi::CString::new(interface).ok()?;
    // SAFETY: the string is terminated and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The kernel module behind an interface, `none` for one without a device (veth, bridge).
pub fn driver(interface: &str) -> String {
    fs::read_link(format!("/sys/class/net/{interface}/device/driver"))
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "none".into())
}

fn os_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(e) => e.io_error,
        ProgramError::XdpError(XdpError::NetlinkError(e)) => {
            e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
        }
        other => io::Error::other(other.to_string()),
    }
}
