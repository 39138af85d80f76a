//! The kernel side, seen from user space: the embedded object, its maps as Rust types, its pins, its place on an
//! interface.
//!
//! What must outlive this process stands on bpffs, under `guard.pin_path`:
//!
//! ```text
//! v3/maps/NAME     the maps of layout version 3
//! links/INTERFACE  the attachment; no version, so that a new program takes it over without a gap
//! ```

mod btf;
mod interface;
mod kernel;
mod link;
mod maps;
mod netlink;
mod object;
mod older;
mod pins;
mod sockmap;
mod splice;
mod sys;

pub use interface::{driver, ifindex, with_lower};
pub use kernel::{Kernel, KernelError};
pub use link::{AttachError, AttachMode, Attachment, Interfaces, Wanted, Xdp};
pub use maps::{Maps, listener_key};
pub use netlink::{XdpState, xdp_state};
pub use object::{LoadError, OBJECT, Object};
pub use pins::{Hook, PinError, Pins, is_bpffs, link_name};
pub use sockmap::{Joints, SockmapError};
pub use splice::{Events, SpliceMaps};

#[cfg(test)]
pub(crate) use sys::load_drop_all;
