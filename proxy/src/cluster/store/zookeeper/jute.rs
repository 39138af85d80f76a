//! ZooKeeper's wire format, jute: big-endian numbers, strings and buffers after their length
//! (`zookeeper.jute` and `ZooDefs.java` in ZooKeeper's source).

use super::ZookeeperError;

/// The operations used here (`ZooDefs.OpCode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Op {
    Create = 1,
    Delete = 2,
    Exists = 3,
    GetData = 4,
    SetData = 5,
    Sync = 9,
    GetChildren = 12,
    Auth = 100,
    CloseSession = -11,
}

/// Why a server refused a request (`KeeperException.Code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoNode,
    NodeExists,
    NoAuth,
    SessionExpired,
    AuthFailed,
    Other(i32),
}

/// What is known of a node (`Stat`), as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// Of its last change.
    pub(super) mzxid: i64,
    /// The session it ends with, 0 for none.
    pub(super) owner: i64,
}

/// A record being written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

/// A record being read. Every read may fail: it came from outside.
#[derive(Debug)]
pub(super) struct Reader<'b>(&'b [u8]);

// === impl Refusal ===

impl Refusal {
    pub(super) fn of(code: i32) -> Option<Self> {
        match code {
            0 => None,
            -101 => Some(Self::NoNode),
            -102 => Some(Self::NoAuth),
            -110 => Some(Self::NodeExists),
            -112 => Some(Self::SessionExpired),
            -115 => Some(Self::AuthFailed),
            other => Some(Self::Other(other)),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoNode => f.write_str("no such node"),
            Self::NodeExists => f.write_str("the node exists"),
            Self::NoAuth => f.write_str("no permission"),
            Self::SessionExpired => f.write_str("the session has expired"),
            Self::AuthFailed => f.write_str("authentication failed"),
            Self::Other(code) => write!(f, "error {code}"),
        }
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn request(xid: i32, op: Op) -> Self {
        Self::default().int(xid).int(op as i32)
    }

    pub(super) fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn flag(mut self, value: bool) -> Self {
        self.0.push(value.into());
        self
    }

    pub(super) fn buffer(self, value: &[u8]) -> Self {
        // Nothing written here comes near 2 GiB.
        let mut writer = self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        writer.0.extend(value);
        writer
    }

    pub(super) fn text(self, value: &str) -> Self {
        self.buffer(value.as_bytes())
    }

    /// With its length before it.
    pub(super) fn frame(self) -> Vec<u8> {
        let length = i32::try_from(self.0.len()).unwrap_or(i32::MAX);
        [&length.to_be_bytes(), &self.0[..]].concat()
    }
}

// === impl Reader ===

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], ZookeeperError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ZookeeperError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ZookeeperError> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    pub(super) fn int(&mut self) -> Result<i32, ZookeeperError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Result<i64, ZookeeperError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A length of -1 is null, which is empty here.
    pub(super) fn buffer(&mut self) -> Result<&'b [u8], ZookeeperError> {
        match self.int()? {
            -1 => Ok(&[]),
            length => self.take(usize::try_from(length).map_err(|_| ZookeeperError::Malformed)?),
        }
    }

    /// Names that are not UTF-8 are left out.
    pub(super) fn texts(&mut self) -> Result<Vec<String>, ZookeeperError> {
        let mut texts = Vec::new();
        for _ in 0..self.int()?.max(0) {
            if let Ok(text) = std::str::from_utf8(self.buffer()?) {
                texts.push(text.into());
            }
        }
        Ok(texts)
    }

    pub(super) fn stat(&mut self) -> Result<Stat, ZookeeperError> {
        let _created = self.long()?;
        let mzxid = self.long()?;
        // ctime, mtime, version, cversion, aversion
        self.take(8 + 8 + 4 + 4 + 4)?;
        let owner = self.long()?;
        // dataLength, numChildren, pzxid
        self.take(4 + 4 + 8)?;
        Ok(Stat { mzxid, owner })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frame = Writer::request(7, Op::GetData).text("/a").flag(true).long(-2).frame();
        assert_eq!(frame.len(), 4 + 4 + 4 + (4 + 2) + 1 + 8);
        let mut reader = Reader::new(&frame);
        assert_eq!((reader.int().unwrap(), reader.int().unwrap(), reader.int().unwrap()), (23, 7, 4));
        assert_eq!(reader.buffer().unwrap(), b"/a");
        assert_eq!(reader.take(1).unwrap(), [1]);
        assert_eq!(reader.long().unwrap(), -2);
        assert!(reader.int().is_err(), "nothing is left");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_ask_for_memory(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Reader::new(&bytes).texts();
            let _ = Reader::new(&bytes).stat();
            let _ = Reader::new(&bytes).buffer();
        }
    }
}
