//! What a process begins with: the sockets of the running process in a takeover and what it knows of each cluster, or the
//! sockets that systemd kept.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use socket2::Socket;

use crate::cluster::Floor;
use crate::session::listening::local_address;

/// What is not taken out is closed when dropped.
#[derive(Debug, Default)]
pub struct Inherited {
    pub listening: Vec<Listening>,
    /// The admin interface's Unix socket with its file.
    pub admin: Option<(PathBuf, OwnedFd)>,
    /// And its TCP socket, with the address it is bound to.
    pub http: Option<(SocketAddr, OwnedFd)>,
    /// By cluster: below which nobody is opened.
    pub floors: BTreeMap<String, Floor>,
}

/// A listening socket with the name of its listener, as far as whoever kept it knows.
#[derive(Debug)]
pub struct Listening {
    pub name: String,
    pub address: SocketAddr,
    pub socket: Socket,
}

impl Inherited {
    pub fn add(&mut self, name: &str, socket: Socket) -> std::io::Result<()> {
        let address = local_address(&socket)?;
        self.listening.push(Listening { name: name.into(), address, socket });
        Ok(())
    }

    /// All sockets for an address of a listener's configuration. With port 0 those that this listener had at that IP.
    pub fn take(&mut self, listener: &str, configured: SocketAddr) -> Vec<Socket> {
        let fits = |one: &Listening| match configured.port() {
            0 => one.name == listener && one.address.ip() == configured.ip(),
            _ => one.address == configured,
        };
        let (taken, rest) = std::mem::take(&mut self.listening).into_iter().partition(fits);
        self.listening = rest;
        Vec::into_iter(taken).map(|one: Listening| one.socket).collect()
    }

    /// The Unix socket of the admin interface, if this is its file.
    pub fn take_admin(&mut self, path: &Path) -> Option<OwnedFd> {
        self.admin.take_if(|(file, _)| file == path).map(|(_, socket)| socket)
    }

    /// The TCP socket of the admin interface, if it is bound there.
    pub fn take_http(&mut self, configured: SocketAddr) -> Option<OwnedFd> {
        let port_fits = |port| configured.port() == 0 || configured.port() == port;
        let fits = |address: &SocketAddr| address.ip() == configured.ip() && port_fits(address.port());
        self.http.take_if(|(address, _)| fits(address)).map(|(_, socket)| socket)
    }
}
