//! Descriptors over a Unix socket (SCM_RIGHTS, unix(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors in one message. The kernel takes 253 (SCM_MAX_FD).
pub const MOST: usize = 200;

/// One message: `bytes`, which must not be empty on a stream, with `fds` attached.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(fds.len() <= MOST, "{} descriptors in one message", fds.len());
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut data = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::for_descriptors(raw.len());
    let mut message = message(&mut data);
    if !raw.is_empty() {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() * size_of::<u64>();
        // SAFETY: the control buffer is aligned for a cmsghdr and has room for one with these descriptors, so the first
        // header exists and its data ends within the buffer.
        unsafe {
            let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
            header.cmsg_level = libc::SOL_SOCKET;
            header.cmsg_type = libc::SCM_RIGHTS;
            header.cmsg_len = libc::CMSG_LEN(size_of_val(&raw[..]) as u32) as usize;
            let into = libc::CMSG_DATA(std::ptr::from_ref(header));
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), into, size_of_val(&raw[..]));
        }
    }
    // SAFETY: the message points to buffers that live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// One message, or a part of it: how many bytes were written to `bytes`, and the descriptors that came along.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut data = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control::for_descriptors(MOST);
    let mut message = message(&mut data);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() * size_of::<u64>();
    // SAFETY: the message points to buffers that live until the call returns.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has written whole headers within the buffer, and what SCM_RIGHTS carries are descriptors of
    // ours that nobody else owns.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(one) = header.as_ref() {
            if one.cmsg_level == libc::SOL_SOCKET && one.cmsg_type == libc::SCM_RIGHTS {
                let from = libc::CMSG_DATA(header).cast::<RawFd>();
                let count = (one.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                fds.extend((0..count).map(|at| OwnedFd::from_raw_fd(from.add(at).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("descriptors were lost: is the limit of open files reached?"));
    }
    Ok((received, fds))
}

/// Room for one control message, aligned as a cmsghdr wants it.
struct Control(Vec<u64>);

impl Control {
    fn for_descriptors(count: usize) -> Self {
        // SAFETY: only computes.
        let bytes = unsafe { libc::CMSG_SPACE((count * size_of::<RawFd>()) as u32) } as usize;
        Self(vec![0; bytes.div_ceil(size_of::<u64>())])
    }
}

fn message(data: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr without name, data and control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = data;
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_byte_they_were_sent_with() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what is in it").unwrap();
        send(ours.as_fd(), b"a", &[]).unwrap();
        send(ours.as_fd(), b"b", &vec![file.as_fd(); MOST]).unwrap();
        let mut byte = [0; 1];
        assert!(receive(theirs.as_fd(), &mut byte).unwrap().1.is_empty());
        let (1, fds) = receive(theirs.as_fd(), &mut byte).unwrap() else { panic!("one byte was sent") };
        assert_eq!((byte, fds.len()), (*b"b", MOST));
        let mut same = File::from(fds.into_iter().next().unwrap());
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "what is in it");
        drop(ours);
        assert_eq!(receive(theirs.as_fd(), &mut byte).unwrap().0, 0);
    }
}
