//! The new process's part of a takeover.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use socket2::Socket;
use tokio::net::UnixStream;

use super::Inherited;
use super::talk::{Message, Offered, PROTOCOL, Talk, TalkError};
use crate::admin::api;

/// For an answer that needs nothing but a few steps of the old process.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("takeover: {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("takeover: the running pgsplice cannot be taken over from ({0}): stop it, then start this one")]
    Unknown(StatusCode),
    #[error("takeover refused: {0}")]
    Refused(String),
    #[error("takeover: {0}")]
    Http(String),
    #[error("takeover: {0}")]
    Talk(#[from] TalkError),
    #[error("takeover: a socket of the running pgsplice cannot be used: {0}")]
    Socket(io::Error),
}

/// A takeover under way. Dropping it gives it up, and the old process goes on.
#[derive(Debug)]
pub struct Takeover {
    talk: Talk,
    /// The process that is taken over from.
    pub pid: Option<i32>,
}

impl Takeover {
    /// Asks the process whose admin interface listens on `socket` for its sockets. `None`: nobody does.
    pub async fn begin(socket: &Path) -> Result<Option<(Self, Inherited)>, TakeError> {
        let stream = match UnixStream::connect(socket).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            stream => stream.map_err(|source| TakeError::Connect { socket: socket.into(), source })?,
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let takeover = Self { talk: Talk::new(upgrade(stream).await?), pid };
        takeover.talk.say(&Message::Begin, &[]).await?;
        let inherited = takeover.receive().await?;
        Ok(Some((takeover, inherited)))
    }

    async fn receive(&self) -> Result<Inherited, TakeError> {
        let mut inherited = Inherited::default();
        loop {
            let (sockets, more, descriptors) = match self.talk.hear(ANSWER_LIMIT).await? {
                (Message::Sockets { sockets, more, floors }, descriptors) => {
                    inherited.floors.extend(floors);
                    (sockets, more, descriptors)
                }
                (other, _) => return Err(TalkError::Unexpected(format!("{other:?}")).into()),
            };
            if sockets.len() != descriptors.len() {
                let said = format!("{} descriptors for {} sockets", descriptors.len(), sockets.len());
                return Err(TalkError::Unexpected(said).into());
            }
            for (offered, descriptor) in sockets.into_iter().zip(descriptors) {
                keep(&mut inherited, offered, descriptor).map_err(TakeError::Socket)?;
            }
            if !more {
                return Ok(inherited);
            }
        }
    }

    /// What only one process may hold, the pins, is ours when this returns.
    pub async fn claim_kernel(&self) -> Result<(), TakeError> {
        self.talk.say(&Message::Kernel, &[]).await?;
        Ok(self.talk.expect(&Message::Yours, ANSWER_LIMIT).await?)
    }

    /// This process accepts; the old one does not any more when this returns. `admin_kept`: this one serves the admin
    /// interface on the old one's Unix socket.
    pub async fn finish(self, admin_kept: bool) -> Result<(), TakeError> {
        self.talk.say(&Message::Ready { admin_kept }, &[]).await?;
        Ok(self.talk.expect(&Message::Gone, ANSWER_LIMIT).await?)
    }

    /// Whether the process that is taken over from has ended.
    pub fn is_over(pid: i32) -> bool {
        // SAFETY: plain system call that sends no signal.
        let found = unsafe { libc::kill(pid, 0) } == 0;
        !found && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }
}

fn keep(inherited: &mut Inherited, offered: Offered, descriptor: OwnedFd) -> io::Result<()> {
    match offered {
        Offered::Listener(name) => inherited.add(&name, Socket::from(descriptor))?,
        Offered::AdminUnix(path) => inherited.admin = Some((path, descriptor)),
        Offered::AdminHttp(address) => inherited.http = Some((address, descriptor)),
    }
    Ok(())
}

/// From HTTP to the conversation.
async fn upgrade(stream: UnixStream) -> Result<UnixStream, TakeError> {
    let http = |error: &dyn std::fmt::Display| TakeError::Http(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| http(&error))?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/takeover")
        .header(header::HOST, "pgsplice")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| http(&error))?;
    let answer = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request));
    let answer = answer.await.map_err(|_| TalkError::Silent(ANSWER_LIMIT))?.map_err(|error| http(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| http(&error))?.to_bytes();
        return Err(match serde_json::from_slice::<api::Error>(&body) {
            Ok(api::Error { error }) if status != StatusCode::NOT_FOUND => TakeError::Refused(error),
            _ => TakeError::Unknown(status),
        });
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(|error| http(&error))?;
    let parts = upgraded.downcast::<TokioIo<UnixStream>>().map_err(|_| http(&"not the connection that was made"))?;
    Ok(parts.io.into_inner())
}
