//! A COPY without end in one direction, every byte of it compared.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

use super::super::pattern::Pattern;
use super::super::window::now;
use super::super::wire;
use super::session::{self, Session};
use super::{Outcome, Share};

/// What one read or write asks for, in bytes.
const CHUNK: usize = 256 << 10;

/// COPY TO STDOUT.
pub fn take(share: Share) -> Result<Outcome> {
    let Some(mut stream) = begin(share, true)? else { return Ok(Outcome::default()) };
    let pattern = Pattern::default();
    let mut buffer = vec![0; CHUNK];
    let (mut place, mut done) = (0, 0);
    while !share.window.is_over(now()) {
        let read = stream.read(&mut buffer).context("wait for the stream")?;
        ensure!(read > 0, "the stream was closed in the middle of the run");
        ensure!(pattern.agrees(place, &buffer[..read]), "a wrong byte between {place} and {}", place + read as u64);
        place += read as u64;
        if share.window.holds(now()) {
            done += read as u64;
        }
    }
    Ok(Outcome { done, ..Outcome::default() })
}

/// COPY FROM STDIN. The server compares, and says at the end how many bytes it has had.
pub fn give(share: Share) -> Result<Outcome> {
    let Some(mut stream) = begin(share, false)? else { return Ok(Outcome::default()) };
    let pattern = Pattern::default();
    let (mut place, mut done) = (0, 0);
    while !share.window.is_over(now()) {
        let written = stream.write(pattern.at(place)).context("send the stream")?;
        place += written as u64;
        if share.window.holds(now()) {
            done += written as u64;
        }
    }
    stream.write_all(&pattern.at(place)[..Pattern::left(place)]).context("send the stream's end")?;
    place += Pattern::left(place) as u64;
    stream.write_all(&wire::COPY_DONE).context("send CopyDone")?;
    expect(&mut stream, &wire::copy_complete(place)).context("after the stream's end")?;
    stream.write_all(&wire::TERMINATE).context("say goodbye")?;
    Ok(Outcome { done, ..Outcome::default() })
}

/// One stream a thread.
fn begin(share: Share, out: bool) -> Result<Option<TcpStream>> {
    let session = share.connections().next().map(|number| Session::open(share.args, number));
    share.stands();
    let Some(session) = session.transpose()? else { return Ok(None) };
    let (mut stream, _) = session.into_parts();
    stream.write_all(&wire::stream_query(out)).context("ask for the stream")?;
    expect(&mut stream, &wire::copy_response(if out { b'H' } else { b'G' }))?;
    Ok(Some(stream))
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let mut received = vec![0; bytes.len()];
    let mut have = 0;
    while have < received.len() {
        match stream.read(&mut received[have..]).context("wait for a reply")? {
            0 => bail!("closed{}", session::said(&received[..have])),
            read => have += read,
        }
    }
    ensure!(received == bytes, "the server said something else{}", session::said(&received));
    Ok(())
}
