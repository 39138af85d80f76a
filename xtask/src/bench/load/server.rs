//! `cargo xtask bench-server`: answers each Query with as many bytes as it asks for, and sends or checks streams, on one
//! thread for each address it listens on.
//!
//! One thread an address spreads the work evenly whenever the contender spreads its connections evenly.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::pattern::Pattern;
use super::wire::{self, First, Request};

/// What the hidden command line takes.
#[derive(clap::Args)]
pub struct Args {
    /// Address to listen on; several make several threads
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

/// Serves until it is killed. Prints `ready` once every address listens.
pub fn run(args: Args) -> Result<()> {
    let pattern = Arc::new(Pattern::default());
    let listen = |address| Worker::listen(address, pattern.clone());
    let workers = args.listen.into_iter().map(listen).collect::<Result<Vec<_>>>()?;
    println!("ready");
    let threads: Vec<_> = workers.into_iter().map(|worker| thread::spawn(|| worker.serve())).collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a server thread panicked"))??;
    }
    Ok(())
}

const LISTENER: Token = Token(usize::MAX);
/// A stream's share of its thread before the other sessions have their turn, in bytes.
const TURN: usize = 4 << 20;

/// One address, one thread.
struct Worker {
    poll: Poll,
    listener: TcpListener,
    /// A session's token is its place here.
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    opened: u32,
    desk: Desk,
}

/// What a thread's sessions share.
struct Desk {
    pattern: Arc<Pattern>,
    buffer: Vec<u8>,
    /// The last reply, for another tag.
    reply: Vec<u8>,
}

struct Session {
    stream: TcpStream,
    state: State,
    number: u32,
    /// Bytes of a packet that has not arrived whole; empty nearly always.
    partial: Vec<u8>,
    /// Bytes the socket did not take; empty but after a long reply.
    unsent: Vec<u8>,
}

enum State {
    /// Its startup has not arrived.
    New,
    Started,
    /// Sends the pattern without end; so many bytes so far.
    Sending(u64),
    /// Takes the pattern; so many bytes so far.
    Taking(u64),
}

enum Next {
    Keep,
    /// There is more to do at once.
    Again,
    Close,
}

impl Worker {
    fn listen(address: SocketAddr, pattern: Arc<Pattern>) -> Result<Self> {
        let poll = Poll::new().context("epoll_create")?;
        let mut listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).context("epoll_ctl")?;
        let desk = Desk { pattern, buffer: vec![0; 64 << 10], reply: wire::reply(0, wire::REPLY_LEN) };
        Ok(Self { poll, listener, sessions: Vec::new(), free: Vec::new(), opened: 0, desk })
    }

    fn serve(mut self) -> Result<()> {
        let mut events = Events::with_capacity(256);
        let mut again = Vec::new();
        loop {
            let patience = (!again.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, patience) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other.context("epoll_wait")?,
            }
            for place in std::mem::take(&mut again) {
                self.turn(place, false, &mut again);
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                } else {
                    self.turn(event.token().0, event.is_read_closed(), &mut again);
                }
            }
        }
    }

    fn turn(&mut self, place: usize, closing: bool, again: &mut Vec<usize>) {
        let Some(session) = self.sessions[place].as_mut() else { return };
        match session.turn(&mut self.desk, closing) {
            Next::Keep => {}
            Next::Again if again.contains(&place) => {}
            Next::Again => again.push(place),
            Next::Close => {
                self.sessions[place] = None;
                self.free.push(place);
                again.retain(|other| *other != place);
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The peer was gone before we came to it.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                Err(e) => return Err(e).context("accept"),
            };
            // A peer that is gone already is noticed by the first read.
            let _ = stream.set_nodelay(true);
            let place = self.free.pop().unwrap_or(self.sessions.len());
            if place == self.sessions.len() {
                self.sessions.push(None);
            }
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(place), both).context("epoll_ctl")?;
            self.opened += 1;
            self.sessions[place] = Some(Session {
                stream,
                state: State::New,
                number: self.opened,
                partial: Vec::new(),
                unsent: Vec::new(),
            });
        }
    }
}

impl Session {
    /// Edge-triggered: writes what is left, then reads until the socket is empty. A short read means it is, which saves the
    /// read that would say so, unless a FIN came along: no further edge would tell of it.
    fn turn(&mut self, desk: &mut Desk, closing: bool) -> Next {
        if self.flush().is_none() {
            return Next::Close;
        }
        let mut taken = 0;
        while taken < TURN {
            let mut buffer = std::mem::take(&mut desk.buffer);
            let read = self.stream.read(&mut buffer);
            let next = match read {
                Ok(0) => Some(Next::Close),
                Ok(read) => {
                    taken += read;
                    match self.input(&buffer[..read], desk) {
                        None => Some(Next::Close),
                        Some(()) => (read < buffer.len() && !closing).then_some(Next::Keep),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => Some(Next::Keep),
                Err(e) if e.kind() == ErrorKind::Interrupted => None,
                Err(_) => Some(Next::Close),
            };
            desk.buffer = buffer;
            match next {
                Some(Next::Keep) if matches!(self.state, State::Sending(_)) => return self.pump(&desk.pattern),
                Some(next) => return next,
                None => {}
            }
        }
        Next::Again
    }

    /// `None` closes the session.
    fn input(&mut self, bytes: &[u8], desk: &mut Desk) -> Option<()> {
        if self.partial.is_empty() {
            return self.take(bytes, desk);
        }
        let mut input = std::mem::take(&mut self.partial);
        input.extend(bytes);
        self.take(&input, desk)
    }

    /// Answers every whole packet of `input` and keeps the rest.
    fn take(&mut self, mut input: &[u8], desk: &mut Desk) -> Option<()> {
        while !input.is_empty() {
            let length = match self.state {
                State::New => self.first(input)?,
                State::Started | State::Sending(_) => self.message(input, desk)?,
                State::Taking(place) => self.stream(place, input, &desk.pattern)?,
            };
            if length == 0 {
                break;
            }
            input = &input[length..];
        }
        self.partial.extend(input);
        Some(())
    }

    /// Each of these gives the length of what it took, 0 when it needs more.
    fn first(&mut self, input: &[u8]) -> Option<usize> {
        match wire::first(input).ok()? {
            Some((First::Startup, length)) => {
                self.state = State::Started;
                self.send(&wire::welcome(self.number, wire::wanted_welcome(&input[..length])))?;
                Some(length)
            }
            Some((First::Encryption, length)) => self.send(b"N").map(|()| length),
            Some((First::Cancel, _)) => None,
            None => Some(0),
        }
    }

    fn message(&mut self, input: &[u8], desk: &mut Desk) -> Option<usize> {
        match wire::frame(input).ok()? {
            Some((b'Q', length)) => self.query(&input[..length], desk).map(|()| length),
            Some((b'X', _)) => None,
            Some((_, length)) => Some(length),
            None => Some(0),
        }
    }

    fn query(&mut self, message: &[u8], desk: &mut Desk) -> Option<()> {
        match wire::request(message)? {
            Request::Reply { length, tag } => {
                if desk.reply.len() != length.max(wire::MIN_REPLY) {
                    desk.reply = wire::reply(0, length);
                }
                wire::echo_tag(&mut desk.reply, tag);
                self.send(&desk.reply)
            }
            Request::StreamOut => {
                self.state = State::Sending(0);
                self.send(&wire::copy_response(b'H'))
            }
            Request::StreamIn => {
                self.state = State::Taking(0);
                self.send(&wire::copy_response(b'G'))
            }
        }
    }

    /// The stream up to the end of its message, or what ends it.
    fn stream(&mut self, place: u64, input: &[u8], pattern: &Pattern) -> Option<usize> {
        let left = match Pattern::left(place) {
            0 if input.len() < wire::COPY_DONE.len() => return Some(0),
            0 if input.starts_with(&wire::COPY_DONE) => {
                self.state = State::Started;
                self.send(&wire::copy_complete(place))?;
                return Some(wire::COPY_DONE.len());
            }
            0 => Pattern::LEN,
            left => left,
        };
        let chunk = &input[..left.min(input.len())];
        if !pattern.agrees(place, chunk) {
            let said = wire::error(&format!("a wrong byte between {place} and {}", place + chunk.len() as u64));
            let _ = self.send(&said);
            return None;
        }
        self.state = State::Taking(place + chunk.len() as u64);
        Some(chunk.len())
    }

    /// Sends the pattern until the socket is full or the turn is over.
    fn pump(&mut self, pattern: &Pattern) -> Next {
        let State::Sending(mut place) = self.state else { return Next::Keep };
        let mut sent = 0;
        while self.unsent.is_empty() && sent < TURN {
            match self.stream.write(pattern.at(place)) {
                Ok(written) => {
                    place += written as u64;
                    sent += written;
                    self.state = State::Sending(place);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Next::Keep,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Next::Close,
            }
        }
        if self.unsent.is_empty() { Next::Again } else { Next::Keep }
    }

    fn send(&mut self, bytes: &[u8]) -> Option<()> {
        if self.unsent.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => self.unsent.extend(&bytes[written..]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.unsent.extend(bytes),
                Err(_) => return None,
            }
        } else {
            self.unsent.extend(bytes);
        }
        Some(())
    }

    fn flush(&mut self) -> Option<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(())
    }
}
