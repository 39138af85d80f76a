//! The conversation of the two processes in a takeover: JSON messages over a Unix socket, descriptors attached.
//!
//! ```text
//! new → old   POST /v1/takeover, upgraded to this conversation
//! new → old   Begin          HTTP is over: no descriptor can get lost in its buffers any more
//! old → new   Sockets        every listening socket, and below which nobody is opened; both could accept from now on
//! new → old   Kernel         the new process is set up but for what only one may hold
//! old → new   Yours          the old one has let go of its pins
//! new → old   Ready          the new one accepts
//! old → new   Gone           the old one does not any more
//! ```
//! Whoever does not go on closes the connection. Before `Ready` the old process then stays what it was.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::fds;
use crate::cluster::Floor;

/// The name of the protocol in the `Upgrade` header.
pub const PROTOCOL: &str = "pgsplice-takeover-1";

/// Longest message in bytes.
const LONGEST: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    Begin,
    /// One descriptor each, in this order. `more` follow in further messages.
    Sockets {
        sockets: Vec<Offered>,
        more: bool,
        /// By cluster. An older pgsplice says nothing of them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        floors: BTreeMap<String, Floor>,
    },
    Kernel,
    Yours,
    Ready {
        /// The new process serves the admin interface on the old one's Unix socket.
        admin_kept: bool,
    },
    Gone,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offered {
    /// A listening socket of this listener.
    Listener(String),
    /// The admin interface's Unix socket, whose file this is.
    AdminUnix(PathBuf),
    AdminHttp(SocketAddr),
}

#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    #[error("the other process ended the takeover")]
    Ended,
    #[error("the other process said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the other process said {0} where it should have said something else")]
    Unexpected(String),
    #[error("the takeover's connection: {0}")]
    Broken(#[from] io::Error),
    #[error("a message of the takeover cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// One end of it.
#[derive(Debug)]
pub struct Talk(UnixStream);

impl Talk {
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub async fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let body = serde_json::to_vec(message)?;
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(body);
        let mut sent = 0;
        while sent < bytes.len() {
            // The descriptors go with the first byte.
            let attached = if sent == 0 { descriptors } else { &[] };
            sent += self.0.async_io(Interest::WRITABLE, || fds::send(self.0.as_fd(), &bytes[sent..], attached)).await?;
        }
        Ok(())
    }

    pub async fn hear(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), TalkError> {
        tokio::time::timeout(limit, self.next()).await.unwrap_or(Err(TalkError::Silent(limit)))
    }

    /// Hears exactly this.
    pub async fn expect(&self, expected: &Message, limit: Duration) -> Result<(), TalkError> {
        let (message, _) = self.hear(limit).await?;
        if message == *expected { Ok(()) } else { Err(TalkError::Unexpected(format!("{message:?}"))) }
    }

    async fn next(&self) -> Result<(Message, Vec<OwnedFd>), TalkError> {
        let mut descriptors = Vec::new();
        let mut length = [0; 4];
        self.fill(&mut length, &mut descriptors).await?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(TalkError::Unexpected(format!("{length} bytes")));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, &mut descriptors).await?;
        Ok((serde_json::from_slice(&body)?, descriptors))
    }

    async fn fill(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<(), TalkError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let receive = || fds::receive(self.0.as_fd(), &mut bytes[filled..]);
            let (received, more) = self.0.async_io(Interest::READABLE, receive).await?;
            if received == 0 {
                return Err(TalkError::Ended);
            }
            filled += received;
            descriptors.extend(more);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn messages_come_whole_and_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Talk::new(ours), Talk::new(theirs));
        let many: Vec<_> = (0..fds::MOST).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let names = (0..fds::MOST).map(|n| Offered::Listener(format!("{n} {}", "x".repeat(4000)))).collect();
        let first = Message::Sockets { sockets: names, more: true, floors: BTreeMap::default() };
        let said = async {
            let borrowed: Vec<_> = many.iter().map(AsFd::as_fd).collect();
            ours.say(&first, &borrowed).await.unwrap();
            ours.say(&Message::Kernel, &[]).await.unwrap();
        };
        let heard = async {
            let (message, descriptors) = theirs.hear(LIMIT).await.unwrap();
            assert_eq!((message == first, descriptors.len()), (true, fds::MOST));
            theirs.expect(&Message::Kernel, LIMIT).await.unwrap();
        };
        tokio::join!(said, heard);
        ours.say(&Message::Yours, &[]).await.unwrap();
        assert!(matches!(theirs.expect(&Message::Gone, LIMIT).await, Err(TalkError::Unexpected(_))));
        assert!(matches!(theirs.hear(Duration::from_millis(5)).await, Err(TalkError::Silent(_))));
        drop(ours);
        assert!(matches!(theirs.hear(LIMIT).await, Err(TalkError::Ended)));
    }
}
