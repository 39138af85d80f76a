//! The folder on bpffs where maps and links outlive this process, and the lock that makes us its only owner.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use pgsplice_ebpf::LAYOUT_VERSION;

/// statfs(2): `BPF_FS_MAGIC`, linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("guard.pin_path: {} is not on a bpffs: mount one (`mount -t bpf bpf /sys/fs/bpf`)", .0.display())]
    NotBpffs(PathBuf),
    #[error(
        "guard.pin_path: {} is in use by {}: stop it, or give each pgsplice a pin_path of its own",
        .path.display(), owner(.pid)
    )]
    Busy { path: PathBuf, pid: Option<u32> },
    #[error("guard.pin_path: cannot {what} {}: {source}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

fn owner(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} {}", name.trim()).trim_end().to_owned()
        }
        None => "another process".into(),
    }
}

/// What the name of a layout's folder begins with while it is being removed.
const GOING: &str = "going-";

/// Where on an interface a program sits; each has a folder of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Xdp,
    /// tcx, packets that come in.
    Ingress,
    /// tcx, packets that go out.
    Egress,
}

impl Hook {
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    fn folder(self) -> &'static str {
        match self {
            Self::Xdp => "links",
            Self::Ingress => "tc-in",
            Self::Egress => "tc-out",
        }
    }
}

/// Ours alone until dropped. Dropping leaves everything pinned, as a crash does; [`Pins::remove`] does not.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    /// flock(2) on the folder itself: bpffs holds no regular files, and a lock dies with its process.
    lock: File,
}

impl Pins {
    /// Makes the folder where it is missing and locks it.
    pub fn open(path: &Path) -> Result<Self, PinError> {
        let existing = path.ancestors().find(|a| a.exists()).unwrap_or(Path::new("/"));
        if !is_bpffs(existing) {
            return Err(PinError::NotBpffs(path.to_owned()));
        }
        let fail = |what| move |source| PinError::Io { what, path: path.to_owned(), source };
        // A process that ends may remove the folder between our mkdir and our lock: then the lock is on nothing.
        for _ in 0..10 {
            let mut folders = fs::DirBuilder::new();
            folders.recursive(true).mode(0o700).create(path).map_err(fail("create"))?;
            let Ok(lock) = File::open(path) else { continue };
            // SAFETY: the descriptor is open for as long as `lock` lives.
            if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::WouldBlock {
                    return Err(PinError::Busy { path: path.to_owned(), pid: lock_holder(&lock) });
                }
                return Err(fail("lock")(error));
            }
            let ours = lock.metadata().map_err(fail("look at"))?.ino();
            if fs::metadata(path).is_ok_and(|m| m.ino() == ours) {
                let pins = Self { path: path.to_owned(), lock };
                for folder in Hook::ALL.map(|hook| pins.links(hook)).iter().chain([&pins.maps()]) {
                    folders.create(folder).map_err(fail("create a folder in"))?;
                }
                return Ok(pins);
            }
        }
        Err(fail("lock")(io::Error::other("another process keeps removing it")))
    }

    /// Lets another process be the only owner. Until [`Self::lock_again`] nothing pinned may be changed by this one.
    pub fn unlock(&self) -> Result<(), PinError> {
        self.flock(libc::LOCK_UN)
    }

    /// Fails as long as another process is the owner.
    pub fn lock_again(&self) -> Result<(), PinError> {
        self.flock(libc::LOCK_EX | libc::LOCK_NB)
    }

    fn flock(&self, operation: libc::c_int) -> Result<(), PinError> {
        // SAFETY: the descriptor is open for as long as `self` lives.
        if unsafe { libc::flock(self.lock.as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            return Err(PinError::Busy { path: self.path.clone(), pid: lock_holder(&self.lock) });
        }
        Err(PinError::Io { what: "lock", path: self.path.clone(), source: error })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The maps of this layout version.
    pub fn maps(&self) -> PathBuf {
        self.maps_of(LAYOUT_VERSION)
    }

    pub fn maps_of(&self, layout: u32) -> PathBuf {
        self.path.join(format!("v{layout}")).join("maps")
    }

    pub fn links(&self, hook: Hook) -> PathBuf {
        self.path.join(hook.folder())
    }

    /// Where the link of this interface is pinned.
    pub fn link(&self, hook: Hook, interface: &str) -> PathBuf {
        self.links(hook).join(link_name(interface))
    }

    /// Whether no interface has a link of ours.
    pub fn is_unlinked(&self) -> Result<bool, PinError> {
        for hook in Hook::ALL {
            if !self.linked(hook)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Names of the interfaces that have a link.
    pub fn linked(&self, hook: Hook) -> Result<Vec<String>, PinError> {
        let names = list(&self.links(hook))?;
        Ok(names.into_iter().map(|n| n.replace("%2e", ".").replace("%25", "%")).collect())
    }

    /// Removes the maps of every other layout version. Returns which.
    pub fn remove_other_layouts(&self) -> Result<Vec<u32>, PinError> {
        let others = self.other_layouts()?;
        for layout in &others {
            // First in one step: half a folder must not be taken for a layout.
            let (from, to) = (self.path.join(format!("v{layout}")), self.path.join(format!("{GOING}{layout}")));
            fs::rename(&from, to).map_err(|source| PinError::Io { what: "rename", path: from, source })?;
        }
        for name in list(&self.path)?.iter().filter(|name| name.starts_with(GOING)) {
            remove_tree(&self.path.join(name))?;
        }
        Ok(others)
    }

    /// Every other layout version that has a folder, the lowest first.
    pub fn other_layouts(&self) -> Result<Vec<u32>, PinError> {
        let names = list(&self.path)?;
        let versions = names.iter().filter_map(|name| name.strip_prefix('v')?.parse().ok());
        let mut others: Vec<u32> = versions.filter(|version| *version != LAYOUT_VERSION).collect();
        others.sort_unstable();
        Ok(others)
    }

    /// Removes the maps of this layout, not the folder that they were in.
    pub fn remove_maps(&self) -> Result<(), PinError> {
        for name in list(&self.maps())? {
            let path = self.maps().join(name);
            fs::remove_file(&path).map_err(|source| PinError::Io { what: "remove", path, source })?;
        }
        Ok(())
    }

    /// Is nothing pinned for this layout?
    pub fn is_empty(&self) -> bool {
        let empty = |folder: &Path| list(folder).is_ok_and(|names| names.is_empty());
        empty(&self.maps()) && Hook::ALL.into_iter().all(|hook| empty(&self.links(hook)))
    }

    /// Removes every pin and the folder. The lock stays ours until this is dropped, on a folder that has no name.
    pub fn remove(&self) -> Result<(), PinError> {
        remove_tree(&self.path)
    }
}

/// The name of an interface's link: bpffs refuses names with a dot (`eth0.100`).
pub fn link_name(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

pub fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeroes is a valid statfs; the kernel fills it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers live through the call.
    (unsafe { libc::statfs(path.as_ptr(), &mut stat) }) == 0 && stat.f_type as u32 == BPF_FS_MAGIC
}

fn list(folder: &Path) -> Result<Vec<String>, PinError> {
    let fail = |source| PinError::Io { what: "list", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        names.extend(entry.map_err(fail)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn remove_tree(path: &Path) -> Result<(), PinError> {
    fs::remove_dir_all(path).map_err(|source| PinError::Io { what: "remove", path: path.to_owned(), source })
}

/// Who holds the flock, from /proc/locks (`1: FLOCK  ADVISORY  WRITE 812 00:1d:4711 0 EOF`).
fn lock_holder(locked: &File) -> Option<u32> {
    let inode = format!(":{}", locked.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, pid, file) = (fields.next()?, fields.nth(2)?, fields.next()?);
        (kind == "FLOCK" && file.ends_with(&inode)).then(|| pid.parse().ok())?
    })
}
