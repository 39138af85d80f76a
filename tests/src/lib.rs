//! What the integration tests share: a lab for all tests of a file, and handles on what runs in it. The lab itself,
//! and every way of starting a server, is `xtask::lab`'s.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

pub mod bouncer;
pub mod callbacks;
pub mod certificate;
pub mod local;
pub mod member;
pub mod patroni;
pub mod postgres;
pub mod proxy;
pub mod psql;
pub mod raw;
pub mod stores;
pub mod tls_server;
pub mod view;

use std::sync::OnceLock;

use anyhow::{Result, ensure};

pub use certificate::Certificate;
pub use proxy::Pgsplice;
pub use psql::Psql;

/// A lab, and what a test file starts on it, made at the first test that asks and shared by all tests of the file.
/// Statics are never dropped: the lab's watcher removes it when the process has ended.
pub struct Shared<T> {
    make: fn() -> Result<T>,
    made: OnceLock<Result<T, String>>,
}

impl<T> Shared<T> {
    pub const fn new(make: fn() -> Result<T>) -> Self {
        Self { make, made: OnceLock::new() }
    }

    /// Every test fails with the same words when it could not be made.
    pub fn get(&self) -> &T {
        let make = || {
            need_root()?;
            (self.make)()
        };
        match self.made.get_or_init(|| make().map_err(|error| format!("{error:#}"))) {
            Ok(made) => made,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Network namespaces are root's.
pub fn need_root() -> Result<()> {
    // SAFETY: a system call without arguments.
    ensure!(unsafe { libc::geteuid() } == 0, "this test needs root (network namespaces)");
    Ok(())
}
