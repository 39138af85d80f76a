//! The guard's needs, and bpffs, which it shares with the splice: BPF, the interfaces. The program is loaded to see that the kernel takes it, and attached
//! to nothing: attaching may reset a network card.

use std::path::Path;

use super::{Check, sysctl_number};
use crate::bpf::{Object, PinError, Pins, Xdp, XdpState, driver, ifindex, is_bpffs, link_name, xdp_state};
use crate::config::{Config, XdpMode};

pub fn examine(config: &Config) -> Vec<Check> {
    let guard = &config.guard;
    let mut checks = Vec::new();
    if guard.interfaces.is_empty() {
        checks.push(Check::ok("guard", "off: guard.interfaces is empty"));
        if config.splice.interfaces.is_empty() {
            return checks;
        }
    }
    checks.push(jit());
    let existing = guard.pin_path.ancestors().find(|a| a.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        checks.push(Check::ok("bpffs", format!("mounted, guard.pin_path is {}", guard.pin_path.display())));
        checks.extend((!guard.interfaces.is_empty()).then(|| program(&guard.pin_path)));
    } else {
        let found = format!("guard.pin_path {} is not on one", guard.pin_path.display());
        checks.push(Check::fail("bpffs", found, "mount -t bpf bpf /sys/fs/bpf"));
    }
    checks.extend(guard.interfaces.iter().map(|name| interface(name, guard.mode, &guard.pin_path)));
    checks
}

fn jit() -> Check {
    match sysctl_number("net/core/bpf_jit_enable") {
        Some(0) => {
            Check::warn("BPF JIT", "off", "each packet costs several times more: sysctl net.core.bpf_jit_enable=1")
        }
        Some(_) => Check::ok("BPF JIT", "on"),
        None => Check::ok("BPF JIT", "no switch for it on this kernel"),
    }
}

/// Loads the program with pins of its own beside the real ones, and removes them.
fn program(pin_path: &Path) -> Check {
    const NAME: &str = "guard program";
    let own = pin_path.with_file_name(format!("pgsplice-doctor-{}", std::process::id()));
    let pins = match Pins::open(&own) {
        Ok(pins) => pins,
        Err(error @ PinError::Busy { .. }) => return Check::warn(NAME, error.to_string(), "try again"),
        Err(error) => return Check::fail(NAME, error.to_string(), "run doctor as the user pgsplice runs as"),
    };
    let loaded = Object::load(&pins, 1).and_then(|(mut object, _)| object.xdp(Xdp::Guard).map(drop));
    let check = match &loaded {
        Ok(_) => Check::ok(NAME, "the kernel takes it"),
        Err(error) => Check::fail(NAME, error.to_string(), "leave guard.interfaces empty to run without it"),
    };
    drop(loaded);
    if let Err(error) = pins.remove() {
        return Check::warn(NAME, error.to_string(), format!("remove it: rm -r {}", own.display()));
    }
    check
}

fn interface(name: &str, mode: XdpMode, pin_path: &Path) -> Check {
    let title = format!("interface {name}");
    let Some(index) = ifindex(name) else {
        return Check::fail(title, "there is none of this name", "correct guard.interfaces; `ip link` lists them");
    };
    let driver = driver(name);
    // A pgsplice that runs, or one that crashed, has its link pinned here.
    let ours = pin_path.join("links").join(link_name(name)).exists();
    match xdp_state(index) {
        Ok(XdpState::None) => {
            let then = match mode {
                XdpMode::Auto => "native mode is tried at start, generic where the driver has none",
                XdpMode::Native => "native mode or the start fails",
                XdpMode::Generic => "generic mode",
            };
            Check::ok(title, format!("driver {driver}, free; {then}"))
        }
        Ok(state) if ours => Check::ok(title, format!("driver {driver}, has pgsplice's program: {}", words(state))),
        Ok(state) => Check::fail(
            title,
            format!("driver {driver}, has another XDP program: {}", words(state)),
            format!("detach it (`ip link set dev {name} xdp off`) or leave the interface out"),
        ),
        Err(error) => {
            Check::warn(title, format!("driver {driver}, its XDP state cannot be read: {error}"), "run as root")
        }
    }
}

fn words(state: XdpState) -> String {
    match state {
        XdpState::None => "none".into(),
        XdpState::Native { program } => format!("native, program id {program}"),
        XdpState::Generic { program } => format!("generic, program id {program}"),
        XdpState::Offloaded { program } => format!("offloaded, program id {program}"),
        XdpState::Several => "one in each of several modes".into(),
    }
}
