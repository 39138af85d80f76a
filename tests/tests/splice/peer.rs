//! Both ends of a session, played by the test: enough of PostgreSQL's protocol for pgsplice to see a log-in and replies,
//! and inside it requests for as many bytes as a test wants, each of which is checked.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use xtask::lab::Host;

/// Bytes in a message of bulk data.
const CHUNK: usize = 32 * 1024;
/// How long a byte may take under loss; RTOs double.
const PATIENCE: Duration = Duration::from_secs(40);

/// A backend on a host. Its threads end with their connections.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

/// A client that has logged in.
pub struct Client {
    pub stream: TcpStream,
    serial: u64,
}

impl Server {
    /// `reply` bytes are in the answer to the log-in, besides what must be.
    pub fn start(host: &Host, address: SocketAddr, reply: usize) -> Result<Self> {
        let listener = host.on_thread(|| TcpListener::bind(address))??;
        let server = Self { address: listener.local_addr()?, connections: Arc::default() };
        let count = server.connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = count.clone();
                std::thread::spawn(move || {
                    count.fetch_add(1, SeqCst);
                    // An end that a test brings about is no failure.
                    let _ = serve(stream, reply);
                    count.fetch_sub(1, SeqCst);
                });
            }
        });
        Ok(server)
    }
}

/// What a client's startup has the server do around its answer to the log-in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Before it.
    pub wait: Duration,
    /// Behind it.
    pub then: Option<(Duration, Leave)>,
}

/// How the server leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Fin,
    Rst,
}

fn serve(mut stream: TcpStream, reply: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let plan = loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            return Ok(());
        }
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut body)?;
        // An SSLRequest is refused.
        match body[..4] == 80_877_103_u32.to_be_bytes() {
            true => stream.write_all(b"N")?,
            false => break Plan::read(&body),
        }
    };
    std::thread::sleep(plan.wait);
    let mut hello = message(b'R', &0u32.to_be_bytes());
    hello.extend(message(b'K', &[7; 8]));
    if reply > 0 {
        hello.extend(message(b'N', &vec![b'n'; reply]));
    }
    hello.extend(message(b'Z', b"I"));
    stream.write_all(&hello)?;
    if let Some((wait, leave)) = plan.then {
        std::thread::sleep(wait);
        if leave == Leave::Rst {
            return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        stream.shutdown(Shutdown::Write)?;
    }
    loop {
        let Ok((kind, body)) = read_message(&mut stream) else { return Ok(()) };
        match (kind, body.first()) {
            (b'X', _) => return Ok(()),
            (b'Q', Some(b'e')) => {
                let mut answer = message(b'D', &body);
                answer.extend(message(b'Z', b"I"));
                stream.write_all(&answer)?;
            }
            (b'Q', Some(b'g')) => {
                let (mut left, mut bytes) = (number(&body[1..9]) as usize, Bytes(number(&body[9..17])));
                while left > 0 {
                    let chunk = bytes.take(left.min(CHUNK));
                    stream.write_all(&message(b'D', &chunk))?;
                    left -= chunk.len();
                }
                stream.write_all(&message(b'Z', b"I"))?;
            }
            (b'Q', Some(b'p')) => {
                let mut sum = 0;
                while let (b'd', chunk) = read_message(&mut stream)? {
                    sum = add(sum, &chunk);
                }
                let mut answer = message(b'D', &sum.to_be_bytes());
                answer.extend(message(b'Z', b"I"));
                stream.write_all(&answer)?;
            }
            (b'Q', Some(b's')) => {
                std::thread::sleep(Duration::from_millis(number(&body[1..9])));
                stream.write_all(&message(b'Z', b"I"))?;
            }
            (b'Q', Some(b'f')) => {
                stream.shutdown(Shutdown::Write)?;
                // Until the client ends, too.
                io::copy(&mut stream, &mut io::sink())?;
                return Ok(());
            }
            (b'Q', Some(b'r')) => return SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            _ => return Err(io::Error::other("an unknown request")),
        }
    }
}

impl Client {
    pub fn connect(host: &Host, to: SocketAddr) -> Result<Self> {
        Self::connect_from(host, None, to)
    }

    /// From an address and port of the test's choice.
    pub fn connect_from(host: &Host, from: Option<SocketAddr>, to: SocketAddr) -> Result<Self> {
        let mut client = Self::begin(host, from, to, Plan::default())?;
        client.until_ready().context("the log-in")?;
        Ok(client)
    }

    /// The same, and does not wait for the answer to the log-in.
    pub fn begin(host: &Host, from: Option<SocketAddr>, to: SocketAddr, plan: Plan) -> Result<Self> {
        let stream = host.on_thread(|| -> io::Result<TcpStream> {
            let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
            if let Some(from) = from {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
            }
            socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
            Ok(socket.into())
        })??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self::of(stream);
        client.stream.write_all(&plan.startup())?;
        Ok(client)
    }

    /// Of a connection that has logged in.
    pub fn of(stream: TcpStream) -> Self {
        Self { stream, serial: 1 }
    }

    /// `length` bytes there and back.
    pub fn echo(&mut self, length: usize) -> Result<()> {
        let body = self.ask_echo(length)?;
        self.until_echo(length, &body)
    }

    /// Asks for `length` bytes to come back, which are returned for [`Self::until_echo`].
    pub fn ask_echo(&mut self, length: usize) -> Result<Vec<u8>> {
        self.serial += 1;
        let mut body = Bytes(self.serial).take(length.max(1));
        body[0] = b'e';
        self.stream.write_all(&message(b'Q', &body))?;
        Ok(body)
    }

    pub fn until_echo(&mut self, length: usize, body: &[u8]) -> Result<()> {
        let (kind, answer) = read_message(&mut self.stream).context("the echo")?;
        ensure!(kind == b'D' && answer == body, "the echo of {length} bytes is not what was sent");
        self.until_ready()?;
        Ok(())
    }

    /// `length` bytes from the backend.
    pub fn get(&mut self, length: usize) -> Result<()> {
        self.serial += 1;
        let mut body = vec![b'g'];
        body.extend((length as u64).to_be_bytes());
        body.extend(self.serial.to_be_bytes());
        self.stream.write_all(&message(b'Q', &body))?;
        let (mut had, mut expected) = (0, Bytes(self.serial));
        loop {
            let (kind, chunk) =
                read_message(&mut self.stream).with_context(|| format!("after {had} of {length} bytes"))?;
            if kind == b'Z' {
                break;
            }
            ensure!(kind == b'D', "a message {:?} after {had} bytes", kind as char);
            ensure!(chunk == expected.take(chunk.len()), "wrong bytes after {had} of {length}");
            had += chunk.len();
        }
        ensure!(had == length, "{had} of {length} bytes came");
        Ok(())
    }

    /// `length` bytes to the backend.
    pub fn put(&mut self, length: usize) -> Result<()> {
        self.serial += 1;
        self.stream.write_all(&message(b'Q', b"p"))?;
        let (mut left, mut bytes, mut sum) = (length, Bytes(self.serial), 0);
        while left > 0 {
            let chunk = bytes.take(left.min(CHUNK));
            sum = add(sum, &chunk);
            left -= chunk.len();
            self.stream.write_all(&message(b'd', &chunk))?;
        }
        self.stream.write_all(&message(b'c', b""))?;
        let (_, answer) = read_message(&mut self.stream).with_context(|| format!("the sum of {length} bytes"))?;
        ensure!(answer == sum.to_be_bytes(), "the sum of {length} bytes is not that of what was sent");
        self.until_ready()?;
        Ok(())
    }

    /// A request whose answer the test does not wait for: `s` sleeps, `f` sends FIN, `r` RST.
    pub fn ask(&mut self, what: u8, number: u64) -> Result<()> {
        let mut body = vec![what];
        body.extend(number.to_be_bytes());
        Ok(self.stream.write_all(&message(b'Q', &body))?)
    }

    pub fn until_ready(&mut self) -> Result<()> {
        while read_message(&mut self.stream)?.0 != b'Z' {}
        Ok(())
    }

    /// What a read of one byte gives: `Ok(0)` is FIN.
    pub fn end(&mut self) -> io::Result<usize> {
        self.stream.read(&mut [0])
    }

    /// Resets the connection.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(&self.stream.as_fd()).set_linger(Some(Duration::ZERO))
    }
}

impl Plan {
    /// The startup packet that tells it.
    fn startup(self) -> Vec<u8> {
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend(b"user\0app\0database\0shop\0");
        if !self.wait.is_zero() {
            body.extend(format!("wait\0{}\0", self.wait.as_millis()).bytes());
        }
        if let Some((wait, leave)) = self.then {
            let name = if leave == Leave::Fin { "fin" } else { "rst" };
            body.extend(format!("{name}\0{}\0", wait.as_millis()).bytes());
        }
        body.push(0);
        [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
    }

    /// From a startup packet without its length.
    fn read(body: &[u8]) -> Self {
        let texts: Vec<&str> = body
            .get(4..)
            .unwrap_or(&[])
            .split(|byte| *byte == 0)
            .filter_map(|text| str::from_utf8(text).ok())
            .collect();
        let value = |name: &str| {
            let at = texts.iter().step_by(2).position(|text| *text == name)?;
            texts.get(at * 2 + 1)?.parse().ok().map(Duration::from_millis)
        };
        let fin = value("fin").map(|wait| (wait, Leave::Fin));
        Self {
            wait: value("wait").unwrap_or_default(),
            then: fin.or_else(|| value("rst").map(|wait| (wait, Leave::Rst))),
        }
    }
}

pub fn startup() -> Vec<u8> {
    Plan::default().startup()
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut all = vec![kind];
    all.extend((body.len() as u32 + 4).to_be_bytes());
    all.extend(body);
    all
}

pub fn read_message(from: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..1 << 24).contains(&length) {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length - 4];
    from.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// Bytes that no other seed gives.
pub struct Bytes(pub u64);

impl Bytes {
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(length + 8);
        while all.len() < length {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            // Without a loop over its bytes, which is what takes the time in a debug build.
            all.extend_from_slice(&(word ^ (word >> 31)).to_ne_bytes());
        }
        all.truncate(length);
        all
    }
}

fn add(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(sum, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_ne_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}
