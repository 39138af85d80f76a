//! Where the running kernel keeps a member of one of its structs, from its own type information (BTF).
//!
//! aya relocates field accesses of C programs only; ours are told the offsets through globals instead.
//! The format: Documentation/bpf/btf.rst.

use std::io;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("the kernel does not describe its types ({VMLINUX}: {0}): it needs CONFIG_DEBUG_INFO_BTF")]
    Missing(#[source] io::Error),
    #[error("{VMLINUX} is not as expected: {0}")]
    Malformed(&'static str),
    #[error("this kernel has no {of}.{member}")]
    NoMember { of: &'static str, member: &'static str },
}

/// Offsets in bytes of direct members, members of anonymous structs and unions among them, each asked for as struct and
/// member.
pub fn offsets<const N: usize>(members: [(&'static str, &'static str); N]) -> Result<[u32; N], BtfError> {
    let data = std::fs::read(VMLINUX).map_err(BtfError::Missing)?;
    let types = Types::parse(&data)?;
    let mut found = [0; N];
    for (found, (of, member)) in found.iter_mut().zip(members) {
        *found = types.offset(of, member)?;
    }
    Ok(found)
}

struct Types<'a> {
    /// Where each type starts in `data`, by id.
    starts: Vec<usize>,
    data: &'a [u8],
    strings: &'a [u8],
}

/// A struct's, union's or other type's head.
struct Head {
    name: u32,
    kind: u8,
    members: usize,
    /// Members' offsets are in the low 24 bits.
    bitfields: bool,
}

const STRUCT: u8 = 4;
const UNION: u8 = 5;

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let magic = data.get(0..2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed("no magic number"));
        }
        let header = |at| word(data, at).map(|w| w as usize).ok_or(BtfError::Malformed("cut off in its header"));
        let (length, types, types_len, strings, strings_len) =
            (header(4)?, header(8)?, header(12)?, header(16)?, header(20)?);
        let part = |from: usize, len: usize| {
            let start = length.checked_add(from)?;
            data.get(start..start.checked_add(len)?)
        };
        let cut = BtfError::Malformed("a section lies outside");
        let (Some(body), Some(strings)) = (part(types, types_len), part(strings, strings_len)) else { return Err(cut) };
        let mut all = Self { starts: vec![usize::MAX], data: body, strings };
        let mut at = 0;
        while at < body.len() {
            all.starts.push(at);
            let head = all.head(at).ok_or(BtfError::Malformed("cut off in a type"))?;
            at += 12 + extra(&head).ok_or(BtfError::Malformed("a kind of type that is not known"))?;
        }
        Ok(all)
    }

    fn offset(&self, of: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let is_it = |head: Head| head.kind == STRUCT && head.members > 0 && self.name(head.name) == of.as_bytes();
        let one = self.starts.iter().copied().find(|&at| self.head(at).is_some_and(is_it));
        let bits = one.and_then(|at| self.member(at, member.as_bytes(), 0)).filter(|bits| bits % 8 == 0);
        bits.map(|bits| bits / 8).ok_or(BtfError::NoMember { of, member })
    }

    /// In bits. Anonymous structs nest a few levels at most; `depth` is for BTF that lies.
    fn member(&self, at: usize, wanted: &[u8], depth: u32) -> Option<u32> {
        let head = self.head(at)?;
        if depth > 8 || !matches!(head.kind, STRUCT | UNION) {
            return None;
        }
        (0..head.members).find_map(|n| {
            let start = at + 12 + n * 12;
            let (name, kind, offset) =
                (word(self.data, start)?, word(self.data, start + 4)?, word(self.data, start + 8)?);
            let offset = if head.bitfields { offset & 0x00ff_ffff } else { offset };
            let name = self.name(name);
            if name.is_empty() {
                let inner = *self.starts.get(kind as usize)?;
                return self.member(inner, wanted, depth + 1).map(|bits| offset + bits);
            }
            (name == wanted).then_some(offset)
        })
    }

    fn head(&self, at: usize) -> Option<Head> {
        let info = word(self.data, at.checked_add(4)?)?;
        Some(Head {
            name: word(self.data, at)?,
            kind: (info >> 24 & 0x1f) as u8,
            members: (info & 0xffff) as usize,
            bitfields: info >> 31 != 0,
        })
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Bytes that follow a type's head of 12.
fn extra(head: &Head) -> Option<usize> {
    Some(match head.kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Enumeration, function prototype.
        6 | 13 => 8 * head.members,
        // Struct, union, data section, 64-bit enumeration.
        STRUCT | UNION | 15 | 19 => 12 * head.members,
        _ => return None,
    })
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_says_where_a_tcp_socket_keeps_its_write_seq() {
        let [seq, room, queued] =
            offsets([("tcp_sock", "write_seq"), ("sock", "sk_sndbuf"), ("sock", "sk_wmem_queued")]).unwrap();
        assert!(seq > room && room != queued && seq < 4096, "{seq} {room} {queued}");
        assert!(matches!(offsets([("sock", "sk_nonsense")]), Err(BtfError::NoMember { member: "sk_nonsense", .. })));
    }

    #[test]
    fn cut_off_type_information_is_an_error_and_no_panic() {
        let data = std::fs::read(VMLINUX).unwrap();
        for len in (0..64).chain([4096, data.len() / 2, data.len() - 1]) {
            assert!(Types::parse(&data[..len]).is_err(), "{len}");
        }
    }
}
