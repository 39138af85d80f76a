//! The programs' places on an interface: taken over from the process before us where there are any, with no packet
//! missed in between.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, XdpError, XdpMode as AyaMode};

use super::interface::{driver, ifindex, keep_lists_off, with_lower};
use super::netlink::{XdpState, xdp_state};
use super::object::{LoadError, Object};
use super::pins::{Hook, PinError, Pins};
use super::sys;
use crate::config::{SpliceMode, XdpMode};

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("guard.interfaces, splice.interfaces: there is no interface {0}: `ip link` lists them")]
    NoInterface(String),
    #[error(
        "{interface} (driver {driver}) takes no native XDP ({source}): \
         set guard.mode to \"auto\" or \"generic\""
    )]
    NoNative { interface: String, driver: String, source: io::Error },
    #[error(
        "{interface} has another XDP program (id {program}): \
         detach it (`ip link set dev {interface} xdp off`) or leave the interface out"
    )]
    Occupied { interface: String, program: u32 },
    #[error("cannot attach to {interface} in {mode} mode: {source}")]
    Refused { interface: String, mode: AttachMode, source: io::Error },
    #[error("this kernel cannot keep XDP attached to {0} by a link: it needs Linux 5.9 or later")]
    NoLinks(String),
    #[error(
        "this kernel cannot keep TC programs attached to {interface} by links ({source}): it needs Linux 6.6 or later"
    )]
    NoTcx { interface: String, source: io::Error },
    #[error("cannot pin the link at {}: {source}", .path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Object(#[from] LoadError),
}

/// An XDP program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Admission only.
    Guard,
    /// Admission, and forwarding of flows.
    Splice,
}

impl Xdp {
    /// In the object: the one for frames in several buffers, and the one for kernels without those.
    pub(super) fn names(self) -> [&'static str; 2] {
        match self {
            Self::Guard => ["guard_frags", "guard"],
            Self::Splice => ["splice_frags", "splice"],
        }
    }
}

/// How a program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// XDP in the driver, before the kernel makes anything of the frame.
    Native,
    /// XDP in the kernel's stack, on any interface, at a higher cost a packet.
    Generic,
    /// At TC ingress and egress.
    Tc,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        })
    }
}

/// What shall be on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub interface: String,
    /// Of XDP.
    pub mode: XdpMode,
    /// Admission in XDP.
    pub guard: bool,
    /// Forwarding of flows, by which program.
    pub splice: Option<SpliceMode>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    pub interface: String,
    pub mode: AttachMode,
    /// What it does there.
    pub program: Xdp,
}

/// The interfaces that have programs of ours. Dropping it leaves them so: only the pins hold the links.
#[derive(Debug, Default)]
pub struct Interfaces {
    attached: BTreeMap<String, Vec<(AttachMode, Xdp)>>,
}

impl Interfaces {
    pub fn attachments(&self) -> Vec<Attachment> {
        let one = |(interface, all): (&String, &Vec<(AttachMode, Xdp)>)| {
            let interface = interface.clone();
            all.iter()
                .map(move |&(mode, program)| Attachment { interface: interface.clone(), mode, program })
                .collect::<Vec<_>>()
        };
        self.attached.iter().flat_map(one).collect()
    }

    /// Puts programs on exactly these interfaces. Those that have them, from us or from a process before us, get these
    /// in place of theirs at once. An error leaves those done so far.
    pub fn set(&mut self, object: &mut Object, pins: &Pins, wanted: &[Wanted]) -> Result<(), AttachError> {
        let mut kept: Vec<(Hook, &str)> = Vec::new();
        let mut done = Vec::new();
        follow_names(pins, wanted)?;
        for one in wanted {
            done.push((one, attach(object, pins, one)?));
        }
        // A session is forwarded by one program at both its interfaces, and TC can be had on each.
        let by_tc = |attached: &[(AttachMode, Xdp)]| attached.contains(&(AttachMode::Tc, Xdp::Splice));
        if done.iter().any(|(_, attached)| by_tc(attached)) {
            for (one, attached) in done.iter_mut().filter(|(one, attached)| one.splice.is_some() && !by_tc(attached)) {
                attach_tc(object.tc(Hook::Ingress)?, pins, &one.interface, Hook::Ingress)?;
                attach_tc(object.tc(Hook::Egress)?, pins, &one.interface, Hook::Egress)?;
                attached.push((AttachMode::Tc, Xdp::Splice));
            }
        }
        for (one, attached) in done {
            for (mode, _) in &attached {
                let hooks: &[Hook] =
                    if *mode == AttachMode::Tc { &[Hook::Ingress, Hook::Egress] } else { &[Hook::Xdp] };
                kept.extend(hooks.iter().map(|hook| (*hook, one.interface.as_str())));
            }
            // Own packets of a flow's must not go out by any attached interface, whatever forwards there.
            if one.splice.is_some() && !kept.contains(&(Hook::Egress, one.interface.as_str())) {
                match attach_tc(object.tc(Hook::Egress)?, pins, &one.interface, Hook::Egress) {
                    Ok(()) => kept.push((Hook::Egress, &one.interface)),
                    Err(error) => {
                        tracing::warn!(
                            interface = one.interface,
                            "resets of this kernel's own are not kept back: {error}"
                        );
                    }
                }
            }
            self.attached.insert(one.interface.clone(), attached);
        }
        for hook in Hook::ALL {
            for old in pins.linked(hook)? {
                if !kept.contains(&(hook, old.as_str())) {
                    detach(pins, hook, &old)?;
                    tracing::info!(interface = old, ?hook, "program detached");
                }
            }
        }
        self.attached.retain(|interface, _| wanted.iter().any(|one| one.interface == *interface));
        Ok(())
    }

    /// Takes the programs off every interface.
    pub fn clear(&mut self, pins: &Pins) -> Result<(), AttachError> {
        for hook in Hook::ALL {
            for interface in pins.linked(hook)? {
                detach(pins, hook, &interface)?;
            }
        }
        self.attached.clear();
        Ok(())
    }
}

/// An interface may have another name than when its links were pinned: they are its own all the same, and it would take
/// no second XDP program.
fn follow_names(pins: &Pins, wanted: &[Wanted]) -> Result<(), AttachError> {
    for hook in Hook::ALL {
        for old in pins.linked(hook)? {
            let from = pins.link(hook, &old);
            // 0: its interface is gone, or the pin is no link.
            let index = sys::link_ifindex(&from).unwrap_or(0);
            if index == 0 || ifindex(&old) == Some(index) {
                continue;
            }
            let Some(now) = wanted.iter().find(|one| ifindex(&one.interface) == Some(index)) else { continue };
            let to = pins.link(hook, &now.interface);
            if sys::link_ifindex(&to).is_ok_and(|other| other != 0) {
                continue;
            }
            fs::rename(&from, &to).map_err(|source| PinError::Io { what: "rename", path: from, source })?;
            tracing::info!(interface = now.interface, before = old, ?hook, "the interface has another name now");
        }
    }
    Ok(())
}

fn attach(object: &mut Object, pins: &Pins, wanted: &Wanted) -> Result<Vec<(AttachMode, Xdp)>, AttachError> {
    let interface = wanted.interface.as_str();
    if ifindex(interface).is_none() {
        return Err(AttachError::NoInterface(interface.into()));
    }
    let mut attached = Vec::new();
    let by_tc = match wanted.splice {
        None => false,
        Some(SpliceMode::Tc) => true,
        Some(SpliceMode::Xdp) => false,
        // A veth hands over packets without checksums and in bunches, which only TC can deal with.
        Some(SpliceMode::Auto) if driver(interface) == "none" => true,
        Some(SpliceMode::Auto) => {
            let native = if wanted.mode == XdpMode::Generic { XdpMode::Generic } else { XdpMode::Native };
            match attach_xdp(object.xdp(Xdp::Splice)?, pins, interface, native) {
                Ok(mode) => {
                    attached.push((mode, Xdp::Splice));
                    false
                }
                Err(AttachError::NoNative { driver, source, .. }) => {
                    tracing::info!(interface, driver, "no native XDP ({source}): the splice runs at TC");
                    true
                }
                Err(error) => return Err(error),
            }
        }
    };
    if by_tc {
        attach_tc(object.tc(Hook::Ingress)?, pins, interface, Hook::Ingress)?;
        attach_tc(object.tc(Hook::Egress)?, pins, interface, Hook::Egress)?;
        attached.push((AttachMode::Tc, Xdp::Splice));
    }
    let xdp = match (wanted.guard, wanted.splice) {
        (_, Some(_)) if !by_tc => Some(Xdp::Splice),
        (true, _) => Some(Xdp::Guard),
        _ => None,
    };
    if let Some(which) = xdp
        && !attached.iter().any(|(_, program)| *program == which && !by_tc)
    {
        attached.push((attach_xdp(object.xdp(which)?, pins, interface, wanted.mode)?, which));
    }
    Ok(attached)
}

fn attach_xdp(
    program: &mut aya::programs::Xdp,
    pins: &Pins,
    interface: &str,
    mode: XdpMode,
) -> Result<AttachMode, AttachError> {
    let ifindex = ifindex(interface).ok_or_else(|| AttachError::NoInterface(interface.into()))?;
    if let Some(adopted) = adopt(program, pins, interface, ifindex, mode)? {
        return Ok(adopted);
    }
    let refused = |mode, source| match (mode, occupant(ifindex)) {
        (_, Some(program)) => AttachError::Occupied { interface: interface.into(), program },
        (AttachMode::Native, None) => {
            AttachError::NoNative { interface: interface.into(), driver: driver(interface), source }
        }
        (_, None) => AttachError::Refused { interface: interface.into(), mode, source },
    };
    let attempt = |program: &mut aya::programs::Xdp, mode: AttachMode| {
        let aya_mode = if mode == AttachMode::Native { AyaMode::Driver } else { AyaMode::Skb };
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
                tracing::warn!(interface, driver, "no native XDP ({source}): it runs in generic mode");
                (link, AttachMode::Generic)
            }
            Err(e) => return Err(e),
        },
    };
    let path = pins.link(Hook::Xdp, interface);
    link.pin(&path).map_err(|e| AttachError::Pin { path, source: io::Error::other(e) })?;
    tracing::info!(interface, mode = %attached, "XDP program attached");
    Ok(attached)
}

/// Takes over the link that is pinned for the interface: the kernel swaps the programs in one step. `None` if there
/// is none or it is of no use (its interface is gone, its mode is not the one asked for): then it is removed.
fn adopt(
    program: &mut aya::programs::Xdp,
    pins: &Pins,
    interface: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<Option<AttachMode>, AttachError> {
    let path = pins.link(Hook::Xdp, interface);
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
            detach(pins, Hook::Xdp, interface)?;
            Ok(None)
        }
    }
}

/// The same at a TC hook, before the programs of others.
fn attach_tc(program: &mut SchedClassifier, pins: &Pins, interface: &str, hook: Hook) -> Result<(), AttachError> {
    if hook == Hook::Ingress {
        with_lower(interface).iter().for_each(|device| keep_lists_off(device));
    }
    let path = pins.link(hook, interface);
    if path.exists() {
        let replaced = PinnedLink::from_pin(&path)
            .ok()
            // A link whose interface is gone has index 0.
            .filter(|_| is_attached(&path))
            .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
            .and_then(|link| program.attach_to_link(link).ok())
            .and_then(|id| program.take_link(id).ok())
            .is_some();
        if replaced {
            tracing::info!(interface, ?hook, "TC program replaced in the pinned link");
            return Ok(());
        }
        detach(pins, hook, interface)?;
    }
    let at = if hook == Hook::Egress { TcAttachType::Egress } else { TcAttachType::Ingress };
    let failed = |error| AttachError::NoTcx { interface: interface.into(), source: os_error(error) };
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, at, options).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link)
        .map_err(|_| AttachError::NoTcx { interface: interface.into(), source: io::Error::other("no link") })?;
    link.pin(&path).map_err(|e| AttachError::Pin { path, source: io::Error::other(e) })?;
    tracing::info!(interface, ?hook, "TC program attached");
    Ok(())
}

fn is_attached(path: &std::path::Path) -> bool {
    sys::link_ifindex(path).is_ok_and(|index| index != 0)
}

fn detach(pins: &Pins, hook: Hook, interface: &str) -> Result<(), AttachError> {
    let path = pins.link(hook, interface);
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

fn os_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(e) => e.io_error,
        ProgramError::XdpError(XdpError::NetlinkError(e)) => {
            e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
        }
        other => io::Error::other(other.to_string()),
    }
}
