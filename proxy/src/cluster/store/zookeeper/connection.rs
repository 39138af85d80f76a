//! One connection to one ZooKeeper server and the session that lives on it: requests, answered in their order, and
//! events in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ZookeeperError;
use super::jute::{Op, Reader, Refusal, Stat, Writer};
use crate::cluster::tls;
use crate::config::ZookeeperConfig;

/// ZooKeeper's own limit of a node is 1 MiB (`jute.maxbuffer`); a list of children has none.
const MAX_FRAME: usize = 4 * 1024 * 1024;
/// Who an event is for (`ClientCnxn.NOTIFICATION_XID`).
const EVENT: i32 = -1;
const AUTH: i32 = -4;
/// All permissions but the right to change who has them.
const READ_WRITE: i32 = 0b01111;
const READ: i32 = 0b00001;
const ALL: i32 = 0b11111;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    host: String,
    received: BytesMut,
    next_xid: i32,
    /// xids of requests not yet answered.
    pending: VecDeque<i32>,
    /// Whether an event came since this was last looked at.
    pub(super) changed: bool,
    /// The server's last transaction when it answered last.
    pub(super) zxid: i64,
    pub(super) session: i64,
    /// What the server grants.
    pub(super) timeout: Duration,
    /// Nodes made here belong to this login.
    has_login: bool,
}

/// An answer: the body, or why there is none.
type Answer = Result<Bytes, Refusal>;

/// A node that is there.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) stat: Stat,
}

// === impl Connection ===

impl Connection {
    /// Connects, begins a session of its own and logs in. TLS files are read each time: they may have been renewed.
    pub(super) async fn open(host: &str, config: &ZookeeperConfig, timeout: Duration) -> Result<Self, ZookeeperError> {
        let lost = |source| ZookeeperError::Lost { host: host.into(), what: "connect", source };
        let tcp = TcpStream::connect(host).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let stream: Box<dyn Stream> = match &config.tls.ca {
            Some(_) => {
                crate::cluster::install_crypto();
                let tls = tls::client_config(&config.tls)?.expect("with a CA there is a configuration");
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
                let name = ServerName::try_from(name.to_owned()).map_err(|_| tls::TlsError::Name(name.into()))?;
                Box::new(TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(lost)?)
            }
            None => Box::new(tcp),
        };
        let mut connection = Self {
            stream,
            host: host.into(),
            received: BytesMut::new(),
            next_xid: 1,
            pending: VecDeque::new(),
            changed: false,
            zxid: 0,
            session: 0,
            timeout,
            has_login: config.user.is_some(),
        };
        connection.begin(timeout).await?;
        if let (Some(user), Some(password)) = (&config.user, &config.password) {
            connection.log_in(user, password).await?;
        }
        Ok(connection)
    }

    async fn begin(&mut self, timeout: Duration) -> Result<(), ZookeeperError> {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // Version 0, no transaction seen, a new session (id 0, no password), no read-only server.
        let request = Writer::default().int(0).long(0).int(millis).long(0).buffer(&[0; 16]).flag(false);
        self.write(&request.frame()).await?;
        let answer = self.frame().await?;
        let mut answer = Reader::new(&answer);
        let _version = answer.int()?;
        let granted = answer.int()?;
        self.session = answer.long()?;
        match u64::try_from(granted) {
            Ok(millis @ 1..) => self.timeout = Duration::from_millis(millis),
            _ => return Err(ZookeeperError::SessionGone { host: self.host.clone() }),
        }
        Ok(())
    }

    async fn log_in(&mut self, user: &str, password: &str) -> Result<(), ZookeeperError> {
        let login = format!("{user}:{password}");
        let request = Writer::request(AUTH, Op::Auth).int(0).text("digest").text(&login);
        self.write(&request.frame()).await?;
        self.pending.push_back(AUTH);
        self.answer().await?.map(drop).map_err(|refusal| self.refused("log in", "digest", refusal))
    }

    /// Until something watched has changed. May be dropped at any point.
    pub(super) async fn event(&mut self) -> Result<(), ZookeeperError> {
        while !self.changed {
            let frame = self.frame().await?;
            self.note(&frame)?;
        }
        Ok(())
    }

    pub(super) async fn ask_data(&mut self, path: &str) -> Result<(), ZookeeperError> {
        self.send(Op::GetData, |request| request.text(path).flag(true)).await
    }

    pub(super) async fn ask_children(&mut self, path: &str) -> Result<(), ZookeeperError> {
        self.send(Op::GetChildren, |request| request.text(path).flag(true)).await
    }

    pub(super) async fn ask_exists(&mut self, path: &str, watch: bool) -> Result<(), ZookeeperError> {
        self.send(Op::Exists, |request| request.text(path).flag(watch)).await
    }

    pub(super) async fn ask_sync(&mut self, path: &str) -> Result<(), ZookeeperError> {
        self.send(Op::Sync, |request| request.text(path)).await
    }

    /// The answer to a data question; `None` without such a node.
    pub(super) async fn data(&mut self, path: &str) -> Result<Option<Node>, ZookeeperError> {
        let Some(body) = self.found("read", path).await? else { return Ok(None) };
        let mut body = Reader::new(&body);
        Ok(Some(Node { value: body.buffer()?.to_vec(), stat: body.stat()? }))
    }

    pub(super) async fn children(&mut self, path: &str) -> Result<Option<Vec<String>>, ZookeeperError> {
        let Some(body) = self.found("list", path).await? else { return Ok(None) };
        Reader::new(&body).texts().map(Some)
    }

    pub(super) async fn exists(&mut self, path: &str) -> Result<Option<Stat>, ZookeeperError> {
        let Some(body) = self.found("read", path).await? else { return Ok(None) };
        Reader::new(&body).stat().map(Some)
    }

    pub(super) async fn synced(&mut self, path: &str) -> Result<(), ZookeeperError> {
        self.answer().await?.map(drop).map_err(|refusal| self.refused("sync", path, refusal))
    }

    /// Whether it is new.
    pub(super) async fn create(&mut self, path: &str, value: &[u8], ephemeral: bool) -> Result<bool, ZookeeperError> {
        // With a login: everything to it, reading to anybody. Without: everything but administration to anybody, which is
        // ZooKeeper's usual openness.
        let has_login = self.has_login;
        let acl = |request: Writer| match has_login {
            true => request.int(2).int(ALL).text("auth").text("").int(READ).text("world").text("anyone"),
            false => request.int(1).int(READ_WRITE).text("world").text("anyone"),
        };
        self.send(Op::Create, |request| acl(request.text(path).buffer(value)).int(ephemeral.into())).await?;
        match self.answer().await? {
            Ok(_) => Ok(true),
            Err(Refusal::NodeExists) => Ok(false),
            Err(refusal) => Err(self.refused("create", path, refusal)),
        }
    }

    /// Whether there was one.
    pub(super) async fn set(&mut self, path: &str, value: &[u8]) -> Result<bool, ZookeeperError> {
        self.send(Op::SetData, |request| request.text(path).buffer(value).int(-1)).await?;
        Ok(self.found("write", path).await?.is_some())
    }

    /// Whether there was one.
    pub(super) async fn delete(&mut self, path: &str) -> Result<bool, ZookeeperError> {
        self.send(Op::Delete, |request| request.text(path).int(-1)).await?;
        Ok(self.found("delete", path).await?.is_some())
    }

    /// Ends the session, and with it every ephemeral node.
    pub(super) async fn close(&mut self) -> Result<(), ZookeeperError> {
        self.send(Op::CloseSession, |request| request).await?;
        self.answer().await.map(drop)
    }

    async fn send(&mut self, op: Op, body: impl FnOnce(Writer) -> Writer) -> Result<(), ZookeeperError> {
        let xid = self.next_xid;
        self.next_xid = xid.checked_add(1).unwrap_or(1);
        self.pending.push_back(xid);
        let frame = body(Writer::request(xid, op)).frame();
        self.write(&frame).await
    }

    async fn found(&mut self, what: &'static str, path: &str) -> Result<Option<Bytes>, ZookeeperError> {
        match self.answer().await? {
            Ok(body) => Ok(Some(body)),
            Err(Refusal::NoNode) => Ok(None),
            Err(refusal) => Err(self.refused(what, path, refusal)),
        }
    }

    /// The answer to the oldest question.
    async fn answer(&mut self) -> Result<Answer, ZookeeperError> {
        loop {
            let frame = self.frame().await?;
            if let Some(answer) = self.note(&frame)? {
                return Ok(answer);
            }
        }
    }

    /// Takes in a frame. `None`: an event.
    fn note(&mut self, frame: &Bytes) -> Result<Option<Answer>, ZookeeperError> {
        let mut header = Reader::new(frame);
        let (xid, zxid, code) = (header.int()?, header.long()?, header.int()?);
        if xid == EVENT {
            self.changed = true;
            return Ok(None);
        }
        if self.pending.pop_front() != Some(xid) {
            return Err(ZookeeperError::Malformed);
        }
        self.zxid = self.zxid.max(zxid);
        Ok(Some(match Refusal::of(code) {
            Some(refusal) => Err(refusal),
            None => Ok(frame.slice(16..)),
        }))
    }

    /// May be dropped at any point: what was received stays.
    async fn frame(&mut self) -> Result<Bytes, ZookeeperError> {
        loop {
            if let Some(&[a, b, c, d]) = self.received.first_chunk() {
                let length = i32::from_be_bytes([a, b, c, d]);
                let length = usize::try_from(length).ok().filter(|length| *length <= MAX_FRAME);
                let length = length.ok_or(ZookeeperError::Malformed)?;
                if self.received.len() >= 4 + length {
                    self.received.advance(4);
                    return Ok(self.received.split_to(length).freeze());
                }
                self.received.reserve(4 + length - self.received.len());
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(ZookeeperError::Closed { host: self.host.clone() }),
                Ok(_) => {}
                Err(source) => {
                    return Err(ZookeeperError::Lost { host: self.host.clone(), what: "read", source });
                }
            }
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), ZookeeperError> {
        let lost = |source| ZookeeperError::Lost { host: self.host.clone(), what: "write", source };
        self.stream.write_all(frame).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    fn refused(&self, what: &'static str, path: &str, refusal: Refusal) -> ZookeeperError {
        ZookeeperError::Refused { host: self.host.clone(), what, path: path.into(), why: refusal.to_string() }
    }
}
