//! A session, step by step, over a blocking socket.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::wire;
use super::{ANSWER_TIMEOUT, Args, Pattern};

/// A session that has been welcomed.
pub struct Session {
    pub stream: TcpStream,
    asking: Asking,
}

/// The requests of one session and the replies they must get.
pub struct Asking {
    tag: wire::Tag,
    query: [u8; wire::QUERY_LEN],
    expected: Vec<u8>,
}

impl Asking {
    /// For the session of this number, counted over all processes.
    pub fn new(number: usize) -> Self {
        let tag = (number as u64) << 32;
        Self { tag, query: wire::query(tag, wire::REPLY_LEN), expected: wire::reply(tag, wire::REPLY_LEN) }
    }

    /// The next request, for a reply of `length` bytes.
    pub fn next(&mut self, length: usize) -> &[u8] {
        self.tag += 1;
        if self.expected.len() == length {
            wire::retag_query(&mut self.query, self.tag);
            wire::retag_reply(&mut self.expected, self.tag);
        } else {
            self.query = wire::query(self.tag, length);
            self.expected = wire::reply(self.tag, length);
        }
        &self.query
    }

    /// The whole reply to the last request.
    pub fn expected(&self) -> &[u8] {
        &self.expected
    }
}

impl Session {
    /// Connects to the target whose turn it is and goes through the startup.
    pub fn open(args: &Args, number: usize) -> Result<Self> {
        let target = args.target[number % args.target.len()];
        let mut stream = connect(target, args.source).with_context(|| format!("connect to {target}"))?;
        stream.write_all(&wire::startup(args.welcome)).context("send the startup")?;
        let mut welcome = vec![0; args.welcome + 1024];
        let mut received = 0;
        while !welcome[..received].ends_with(&wire::READY_FOR_QUERY) {
            ensure!(received < welcome.len(), "the server's welcome has no end");
            match stream.read(&mut welcome[received..]).context("wait for the welcome")? {
                0 => bail!("{target} closed during the startup{}", said(&welcome[..received])),
                read => received += read,
            }
        }
        let session = welcome.windows(13).find_map(|window| window.strip_prefix(b"K\0\0\0\x0c"));
        let session = session.and_then(|key| Some(u32::from_be_bytes(key.get(..4)?.try_into().ok()?)));
        // A probe may ask any server.
        ensure!(
            args.pattern == Pattern::Probe
                || session.is_some_and(|session| wire::welcome(session, args.welcome) == welcome[..received]),
            "the welcome has other bytes than the server sent"
        );
        Ok(Self { stream, asking: Asking::new(number) })
    }

    /// One request and its whole reply of `length` bytes.
    pub fn ask(&mut self, length: usize) -> Result<()> {
        self.stream.write_all(self.asking.next(length)).context("send a request")?;
        let mut reply = vec![0; length];
        self.stream.read_exact(&mut reply).context("wait for a reply")?;
        ensure!(reply == self.asking.expected(), "a reply has other bytes than were asked for");
        Ok(())
    }

    /// Says goodbye and closes.
    pub fn close(mut self) -> std::io::Result<()> {
        self.stream.write_all(&wire::TERMINATE)
    }

    pub fn into_parts(self) -> (TcpStream, Asking) {
        (self.stream, self.asking)
    }
}

fn connect(target: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP)).context("socket")?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).with_context(|| format!("bind to {source}"))?;
    }
    socket.connect_timeout(&target.into(), ANSWER_TIMEOUT)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("SO_RCVTIMEO")?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).context("SO_SNDTIMEO")?;
    Ok(stream)
}

/// What an ErrorResponse in `bytes` tells, for the message a person sees.
pub fn said(bytes: &[u8]) -> String {
    match wire::frame(bytes) {
        Ok(Some((b'E', length))) => format!(": {}", String::from_utf8_lossy(&bytes[5..length]).replace('\0', " ")),
        _ => String::new(),
    }
}
