//! One request in flight on each of a thread's connections.

use std::io::{ErrorKind, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};

use super::super::window::now;
use super::super::wire;
use super::session::{Asking, Session};
use super::{ANSWER_TIMEOUT, Outcome, Share};

struct Connection {
    stream: mio::net::TcpStream,
    asking: Asking,
    /// When the request went out, in the nanoseconds of [`now`].
    sent: u64,
    /// Bytes of the reply that have arrived.
    received: usize,
}

pub fn work(share: Share) -> Result<Outcome> {
    let opened = share.connections().map(|number| Session::open(share.args, number)).collect::<Result<Vec<_>>>();
    // All stand before the first request: a connection must not wait for CPU that requests take.
    share.stands();
    let mut poll = Poll::new().context("epoll_create")?;
    let mut connections = Vec::new();
    for session in opened? {
        let (stream, asking) = session.into_parts();
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let token = Token(connections.len());
        poll.registry().register(&mut stream, token, Interest::READABLE).context("epoll_ctl")?;
        let mut connection = Connection { stream, asking, sent: 0, received: 0 };
        connection.ask()?;
        connections.push(connection);
    }
    let mut outcome = Outcome::default();
    let mut events = Events::with_capacity(256);
    let mut buffer = [0; 4096];
    while !share.window.is_over(now()) {
        match poll.poll(&mut events, Some(ANSWER_TIMEOUT)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other.context("epoll_wait")?,
        }
        ensure!(!events.is_empty(), "{} connections and no answer for {ANSWER_TIMEOUT:?}", connections.len());
        for event in &events {
            let connection = &mut connections[event.token().0];
            if connection.listen(&mut buffer)? {
                let at = now();
                if share.window.holds(at) {
                    outcome.done += 1;
                    outcome.latency.record(at - connection.sent);
                }
                connection.ask()?;
            }
        }
    }
    // A connection whose last answer is long overdue was lost while the others kept the thread busy.
    let overdue = now().saturating_sub(ANSWER_TIMEOUT.as_nanos() as u64);
    let lost = connections.iter().filter(|connection| connection.sent < overdue).count();
    ensure!(lost == 0, "{lost} of {} connections had no answer for {ANSWER_TIMEOUT:?}", connections.len());
    for connection in &mut connections {
        // The run is over; whether the goodbye arrives changes nothing.
        let _ = connection.stream.write(&wire::TERMINATE);
    }
    Ok(outcome)
}

impl Connection {
    fn ask(&mut self) -> Result<()> {
        let query = self.asking.next(wire::REPLY_LEN);
        self.sent = now();
        let written = self.stream.write(query).context("send a request")?;
        ensure!(written == query.len(), "a socket with nothing in flight took {written} of {} bytes", query.len());
        Ok(())
    }

    /// Whether the whole reply is here.
    fn listen(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let read = match self.stream.read(buffer) {
            Ok(0) => bail!("the connection was closed in the middle of the run"),
            Ok(read) => read,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(false),
            Err(e) => return Err(e).context("wait for a reply"),
        };
        let expected = &self.asking.expected()[self.received..];
        ensure!(expected.starts_with(&buffer[..read]), "{read} bytes came that are not those of the reply");
        self.received += read;
        let whole = read == expected.len();
        if whole {
            self.received = 0;
        }
        Ok(whole)
    }
}
