//! ethtool's ioctls: what an interface's driver is asked, and the features that are on or off by name.

use std::io;
use std::os::fd::AsRawFd;

/// linux/sockios.h
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// GRO that keeps packets as they are and joins them as a list (Linux 5.6, of TCP 6.10); off unless somebody turns it on.
pub const GRO_LISTS: &str = "rx-gro-list";

/// Whether a feature is on. `feature` is the kernel's name (net/ethtool/common.c), as `ethtool -k` shows those it has no
/// own name for.
pub fn is_on(interface: &str, feature: &str) -> io::Result<bool> {
    let (number, count) = find(interface, feature)?;
    // Of 32 features each: those there can be, that are wanted, that are on, and that never change.
    let mut blocks = words(&[ETHTOOL_GFEATURES, count.div_ceil(32)], count.div_ceil(32) as usize * 16);
    ethtool(interface, &mut blocks)?;
    Ok(word(&blocks, 8 + number / 32 * 16 + 8) >> (number % 32) & 1 == 1)
}

/// The same names. An error where it cannot be turned off.
pub fn turn_off(interface: &str, feature: &str) -> io::Result<()> {
    let (number, count) = find(interface, feature)?;
    // Of 32 features each: those that are meant, and of these the ones that shall be on.
    let mut blocks = words(&[ETHTOOL_SFEATURES, count.div_ceil(32)], count.div_ceil(32) as usize * 8);
    let at = 8 + number / 32 * 8;
    blocks[at..at + 4].copy_from_slice(&(1_u32 << (number % 32)).to_ne_bytes());
    ethtool(interface, &mut blocks)?;
    if is_on(interface, feature)? { Err(io::Error::other("the driver keeps it on")) } else { Ok(()) }
}

/// The number of a feature, and how many there are.
fn find(interface: &str, feature: &str) -> io::Result<(usize, u32)> {
    let unknown = || io::Error::from(io::ErrorKind::Unsupported);
    // Reserved, then a mask of 64 bits of the sets that are asked about.
    let mut info = words(&[ETHTOOL_GSSET_INFO, 0, 0, 0, 0], 0);
    info[8..16].copy_from_slice(&(1_u64 << ETH_SS_FEATURES).to_ne_bytes());
    ethtool(interface, &mut info)?;
    let count = word(&info, 16);
    let mut names = words(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count], count as usize * ETH_GSTRING_LEN);
    ethtool(interface, &mut names)?;
    let is_it = |name: &[u8]| name.split(|byte| *byte == 0).next() == Some(feature.as_bytes());
    let number = names[12..].chunks(ETH_GSTRING_LEN).position(is_it).ok_or_else(unknown)?;
    Ok((number, count))
}

/// These, and room behind them.
fn words(head: &[u32], room: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(bytes.len() + room, 0);
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// `data` begins with the command, and takes the answer.
pub fn ethtool(interface: &str, data: &mut [u8]) -> io::Result<()> {
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: the data lives through the call, and its command bounds what the kernel writes.
    unsafe { ioctl(SIOCETHTOOL, &mut request) }
}

/// About this interface.
pub fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// # Safety
/// What the request points to must be what the command wants.
pub unsafe fn ioctl(command: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request lives through the call; the rest is the caller's promise.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command as _, request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_by_name() {
        assert!(is_on("lo", "loopback").unwrap());
        assert!(!is_on("lo", "rx-gro-list").unwrap());
        assert_eq!(is_on("lo", "no-such-feature").unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert!(is_on("no-such-if", "rx-gro-list").is_err());
        assert!(turn_off("lo", "loopback").is_err(), "it never changes");
    }
}
