//! netlink(7) as far as asking needs: one request, all messages that answer it, their attributes.

pub mod route;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `nlmsghdr` and `nlattr` in bytes.
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The top two bits of an attribute's type are flags.
const KIND: u16 = 0x3fff;

pub struct Request(Vec<u8>);

impl Request {
    /// `payload` is the family's own header.
    pub fn new(kind: u16, flags: libc::c_int, payload: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut bytes = vec![0; MESSAGE_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(payload);
        Self(bytes)
    }

    fn is_dump(&self) -> bool {
        u16::from_ne_bytes([self.0[6], self.0[7]]) & libc::NLM_F_DUMP as u16 == libc::NLM_F_DUMP as u16
    }

    /// What stands behind the `nlmsghdr`.
    pub fn payload(&self) -> &[u8] {
        &self.0[MESSAGE_HEADER..]
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// For one who asks at a time: an answer is whoever's takes it first.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// `protocol`: `NETLINK_*`.
    pub fn open(protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The messages that answer, each without its `nlmsghdr`. The request asks for something, or has NLM_F_ACK.
    pub fn ask(&self, request: Request) -> io::Result<Vec<Vec<u8>>> {
        let is_dump = request.is_dump();
        self.send(request)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let length = self.receive(&mut buffer, 0)?;
            let is_over = take(&buffer[..length], &mut answers)?;
            if is_over || !is_dump {
                return Ok(answers);
            }
        }
    }

    /// A request whose answer, a refusal if any, is of no use. Those to the ones before are thrown away, for they would
    /// fill the socket's queue.
    pub fn tell(&self, request: Request) -> io::Result<()> {
        self.send(request)?;
        let mut refusal = [0u8; 256];
        while self.receive(&mut refusal, libc::MSG_DONTWAIT).is_ok() {}
        Ok(())
    }

    fn send(&self, Request(mut bytes): Request) -> io::Result<()> {
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        // SAFETY: the buffer lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        // SAFETY: the buffer lives through the call and its length is its own.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        usize::try_from(length).map_err(|_| io::Error::last_os_error())
    }
}

/// [`Socket::ask`] of a socket of its own.
pub fn ask(protocol: libc::c_int, request: Request) -> io::Result<Vec<Vec<u8>>> {
    Socket::open(protocol)?.ask(request)
}

/// Appends the messages of one datagram. Whether they were the last.
fn take(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while datagram.len() >= MESSAGE_HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let kind = libc::c_int::from(u16::from_ne_bytes([datagram[4], datagram[5]]));
        let Some(payload) = datagram.get(MESSAGE_HEADER..length) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut off"));
        };
        match kind {
            // The end of a dump tells, too, what kept it from going on.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                let code = payload.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => answers.push(payload.to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Kind and value of each attribute.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// The value of the first attribute of this kind.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// AF_INET or AF_INET6.
pub fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// As netlink has an address: 4 or 16 bytes.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let mut request = Request::new(1, 0, &[]);
        request.attribute(2, b"netdev\0");
        request.attribute(0x8003, &7u32.to_ne_bytes());
        let found: Vec<(u16, &[u8])> = attributes(request.payload()).collect();
        assert_eq!(found, [(2, &b"netdev\0"[..]), (3, &7u32.to_ne_bytes())]);
    }

    #[test]
    fn a_dump_that_fails_is_no_empty_one() {
        let done = |code: i32| {
            let mut end = Request::new(libc::NLMSG_DONE as u16, 0, &code.to_ne_bytes());
            end.0[..4].copy_from_slice(&20u32.to_ne_bytes());
            take(&end.0, &mut Vec::new()).map_err(|error| error.raw_os_error())
        };
        assert_eq!((done(0), done(-libc::ENOENT)), (Ok(true), Err(Some(libc::ENOENT))));
    }

    #[test]
    fn no_bytes_panic() {
        for length in 0..40 {
            for byte in [0, 1, 4, 0xff] {
                let bytes = vec![byte; length];
                let _ = take(&bytes, &mut Vec::new());
                assert!(attributes(&bytes).count() <= length);
            }
        }
    }
}
