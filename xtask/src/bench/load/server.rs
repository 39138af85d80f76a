//! `cargo xtask bench-server`: answers each Query with 200 bytes, on one thread for each address it listens on.
//!
//! One thread an address spreads the work evenly whenever the contender spreads its connections evenly.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::wire::{self, First};

/// What the hidden command line takes.
#[derive(clap::Args)]
pub struct Args {
    /// Address to listen on; several make several threads
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

/// Serves until it is killed. Prints `ready` once every address listens.
pub fn run(args: Args) -> Result<()> {
    let workers = args.listen.into_iter().map(Worker::listen).collect::<Result<Vec<_>>>()?;
    println!("ready");
    let threads: Vec<_> = workers.into_iter().map(|worker| thread::spawn(|| worker.serve())).collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a server thread panicked"))??;
    }
    Ok(())
}

const LISTENER: Token = Token(usize::MAX);

/// One address, one thread.
struct Worker {
    poll: Poll,
    listener: TcpListener,
    /// A session's token is its place here.
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    opened: u32,
}

struct Session {
    stream: TcpStream,
    started: bool,
    number: u32,
    /// Bytes of a packet that has not arrived whole; empty nearly always.
    partial: Vec<u8>,
}

enum Next {
    Keep,
    Close,
}

impl Worker {
    fn listen(address: SocketAddr) -> Result<Self> {
        let poll = Poll::new().context("epoll_create")?;
        let mut listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).context("epoll_ctl")?;
        Ok(Self { poll, listener, sessions: Vec::new(), free: Vec::new(), opened: 0 })
    }

    fn serve(mut self) -> Result<()> {
        let reply = wire::reply();
        let mut buffer = vec![0; 16 << 10];
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other.context("epoll_wait")?,
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let place = event.token().0;
                let Some(session) = self.sessions[place].as_mut() else { continue };
                if let Next::Close = session.turn(&mut buffer, &reply, event.is_read_closed()) {
                    self.sessions[place] = None;
                    self.free.push(place);
                }
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
            stream.set_nodelay(true).context("TCP_NODELAY")?;
            let place = self.free.pop().unwrap_or(self.sessions.len());
            if place == self.sessions.len() {
                self.sessions.push(None);
            }
            self.poll.registry().register(&mut stream, Token(place), Interest::READABLE).context("epoll_ctl")?;
            self.opened += 1;
            self.sessions[place] = Some(Session { stream, started: false, number: self.opened, partial: Vec::new() });
        }
    }
}

impl Session {
    /// Edge-triggered: reads until the socket is empty. A short read means it is, which saves the read that would say so,
    /// unless a FIN came along: no further edge would tell of it.
    fn turn(&mut self, buffer: &mut [u8], reply: &[u8], closing: bool) -> Next {
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Next::Close,
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Next::Keep,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Next::Close,
            };
            let next = if self.partial.is_empty() {
                self.take(&buffer[..read], reply)
            } else {
                let mut input = std::mem::take(&mut self.partial);
                input.extend(&buffer[..read]);
                self.take(&input, reply)
            };
            if matches!(next, Next::Close) || (read < buffer.len() && !closing) {
                return next;
            }
        }
    }

    /// Answers every whole packet of `input` and keeps the rest.
    fn take(&mut self, mut input: &[u8], reply: &[u8]) -> Next {
        while !input.is_empty() {
            let answered = if self.started {
                match wire::frame(input) {
                    Ok(Some((b'Q', length))) => self.send(reply).map(|()| length),
                    Ok(Some((b'X', _))) | Err(_) => None,
                    Ok(Some((_, length))) => Some(length),
                    Ok(None) => break,
                }
            } else {
                match wire::first(input) {
                    Ok(Some((First::Startup, length))) => {
                        self.started = true;
                        self.send(&wire::welcome(self.number)).map(|()| length)
                    }
                    Ok(Some((First::Encryption, length))) => self.send(b"N").map(|()| length),
                    Ok(Some((First::Cancel, _))) | Err(_) => None,
                    Ok(None) => break,
                }
            };
            let Some(length) = answered else { return Next::Close };
            input = &input[length..];
        }
        self.partial.extend(input);
        Next::Keep
    }

    /// The clients keep one request in flight, so a socket that takes no 200 bytes is one whose client is lost.
    fn send(&mut self, bytes: &[u8]) -> Option<()> {
        match self.stream.write(bytes) {
            Ok(written) if written == bytes.len() => Some(()),
            _ => None,
        }
    }
}
