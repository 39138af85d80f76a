//! Raw sockets: how packets made by hand leave, through the kernel's routing and neighbours.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One for each address family. The kernel takes whole packets, from the IP header on (raw(7), IPV6_HDRINCL).
#[derive(Debug)]
pub struct Raw {
    v4: OwnedFd,
    /// `None` where the host has no IPv6.
    v6: Option<OwnedFd>,
}

impl Raw {
    pub fn open() -> io::Result<Self> {
        let v4 = open(libc::AF_INET)?;
        let v6 = match open(libc::AF_INET6) {
            Ok(socket) => {
                set(&socket, libc::IPPROTO_IPV6, libc::IPV6_HDRINCL)?;
                Some(socket)
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// `packet` begins with the IP header of `to`'s family.
    pub fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        let socket = match to {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?,
        };
        // A raw socket wants port 0.
        let address = socket2::SockAddr::from(std::net::SocketAddr::new(to, 0));
        // SAFETY: packet and address live through the call, each with its own length.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                address.as_ptr().cast(),
                address.len(),
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn open(family: libc::c_int) -> io::Result<OwnedFd> {
    // IPPROTO_RAW only sends: nothing is ever queued for us.
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value lives through the call and the length is its own.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
