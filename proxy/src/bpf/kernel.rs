//! Everything of ours in the kernel: the loaded programs, their maps and pins, and the interfaces they are on. One for
//! the guard and the splice, for an interface has room for one XDP program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::link::{AttachError, Attachment, Interfaces, Wanted};
use super::maps::Maps;
use super::object::{LoadError, Object};
use super::older::Older;
use super::pins::{PinError, Pins};
use super::splice::SpliceMaps;
use super::sys;

/// Dropping it leaves programs, maps and links where they are, as `kill -9` does, for the next process to take over.
pub struct Kernel {
    pins: Pins,
    inner: Mutex<Inner>,
    splice: Arc<SpliceMaps>,
    drop_all: OwnedFd,
    /// No process before us left a program.
    fresh: bool,
    /// Whose maps were taken over.
    older: Option<Older>,
}

struct Inner {
    object: Object,
    interfaces: Interfaces,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(
        "sessions of another pgsplice version are in the kernel, under {pins}/{layout}, and this one cannot take them over: \
         start that version and end them (`pgsplice kill --all`), or remove {pins} to reset them"
    )]
    OtherLayout { layout: String, pins: String },
}

impl Kernel {
    /// Loads the programs onto the maps a process before us left, or new ones, and attaches nothing. `sessions` is how
    /// many the maps of the splice shall have room for; maps that hold flows stay as they are. The guard's maps come
    /// with it.
    pub fn load(pin_path: &Path, sessions: u32) -> Result<(Arc<Self>, Maps), KernelError> {
        let pins = Pins::open(pin_path)?;
        let fresh = pins.is_unlinked()?;
        let older = Older::find(&pins)?.map_err(|layout| {
            // Its program would be replaced and its sessions lost.
            KernelError::OtherLayout { layout: format!("v{layout}"), pins: pins.path().display().to_string() }
        })?;
        if let Some(older) = &older {
            older.share(&pins)?;
        }
        let loaded = Object::load(&pins, sessions).and_then(|(mut object, maps)| {
            let splice = object.splice_maps(&pins)?;
            if let Some(older) = &older {
                older.convert(&pins, &splice).map_err(LoadError::Splice)?;
            }
            let drop_all = sys::load_drop_all().map_err(LoadError::Splice)?;
            Ok((object, maps, splice, drop_all))
        });
        match loaded {
            Ok((object, maps, splice, drop_all)) => {
                let inner = Mutex::new(Inner { object, interfaces: Interfaces::default() });
                Ok((Arc::new(Self { pins, inner, splice: Arc::new(splice), drop_all, fresh, older }), maps))
            }
            Err(error) => {
                if older.is_some() {
                    pins.remove_maps()?;
                }
                // Only where nothing is pinned yet: a deny list that cannot be read is still somebody's.
                if fresh && pins.is_empty() {
                    let _ = pins.remove();
                }
                Err(error.into())
            }
        }
    }

    pub fn splice(&self) -> &Arc<SpliceMaps> {
        &self.splice
    }

    /// A filter for sockets that are to receive nothing more.
    pub fn drop_all(&self) -> BorrowedFd<'_> {
        self.drop_all.as_fd()
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether no process before us left a program on an interface.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Puts the programs on exactly these interfaces. What a process before us left is taken over in one step, with no
    /// packet missed. An error leaves those done so far.
    pub fn attach(&self, wanted: &[Wanted]) -> Result<(), AttachError> {
        let Inner { object, interfaces } = &mut *self.inner.lock();
        interfaces.set(object, &self.pins, wanted)
    }

    /// Takes every program off its interface.
    pub fn detach(&self) -> Result<(), AttachError> {
        self.inner.lock().interfaces.clear(&self.pins)
    }

    /// This version runs: removes what other layouts have pinned. Returns those of which nothing was taken over.
    pub fn settle(&self) -> Result<Vec<u32>, PinError> {
        let mut others = self.pins.remove_other_layouts()?;
        others.retain(|layout| self.older.as_ref().is_none_or(|older| older.layout != *layout));
        Ok(others)
    }

    /// This version cannot run: what it took over from an older layout is that one's alone again.
    pub fn give_back(&self) -> Result<(), PinError> {
        if self.older.is_some() { self.pins.remove_maps() } else { Ok(()) }
    }

    /// By interface.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.inner.lock().interfaces.attachments()
    }
}
