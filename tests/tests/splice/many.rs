//! Many sessions at once, of which some are killed on the way by each who can: the client, the backend, an administrator.
//! pgsplice itself is killed in the middle. Nobody else notices, and every byte is compared.
//!
//! `PGSPLICE_TEST_SESSIONS=10000 cargo test --package pgsplice-tests --test splice many::` is the long version.

use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use xtask::lab::until;

use crate::peer::{Bytes, message, startup};
use crate::rig::{Rig, Road, Setting};

/// Sessions, unless the environment says otherwise.
const FEW: usize = 1000;
/// Requests of each session before and after pgsplice is killed.
const ROUNDS: u64 = 3;
/// Set in the process that plays the backend: descriptors are scarce, and it takes as many as the clients.
const SERVE: &str = "PGSPLICE_TEST_SERVE";
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a RST may take.
const RESET_PATIENCE: Duration = Duration::from_secs(20);

/// How a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// When all is done, by the client's FIN.
    Stays,
    ClientResets,
    BackendResets,
    Killed,
}

impl Fate {
    fn of(number: usize) -> Self {
        match number % 20 {
            3 => Self::ClientResets,
            9 => Self::BackendResets,
            15 => Self::Killed,
            _ => Self::Stays,
        }
    }
}

async fn read_message(from: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..1 << 24).contains(&length) {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length - 4];
    from.read_exact(&mut body).await?;
    Ok((head[0], body))
}

/// One session at the backend: returns what was asked, as often as asked.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let length = stream.read_u32().await?;
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await?;
    let mut hello = message(b'R', &0u32.to_be_bytes());
    hello.extend(message(b'K', &[7; 8]));
    hello.extend(message(b'Z', b"I"));
    stream.write_all(&hello).await?;
    loop {
        let (_, body) = read_message(&mut stream).await?;
        if body.is_empty() {
            return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        let mut answer = message(b'D', &body);
        answer.extend(message(b'Z', b"I"));
        stream.write_all(&answer).await?;
    }
}

/// Does nothing unless this process was started to play the backend.
#[test]
fn a_backend_serves_when_told_to() {
    let Ok(at) = std::env::var(SERVE) else { return };
    let at: SocketAddr = at.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).unwrap();
        let listener: TcpListener = socket.listen(4096).unwrap();
        loop {
            // Out of descriptors for a moment, or a client that is gone already.
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(serve(stream));
        }
    });
}

struct Backend(Child);

impl Backend {
    fn start(rig: &Rig) -> Result<(Self, SocketAddr)> {
        let host = rig.host("backend");
        let at = SocketAddr::new(host.v4().into(), 6433);
        let program = std::env::current_exe()?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.netns()]).arg(program);
        command.args(["--exact", "many::a_backend_serves_when_told_to", "--nocapture"]).env(SERVE, at.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let backend = Self(child);
        let answers = || host.on_thread(|| std::net::TcpStream::connect(at).is_ok()).unwrap_or(false);
        until("the backend's process", Duration::from_secs(10), answers)?;
        Ok((backend, at))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Client {
    stream: TcpStream,
    number: u64,
}

impl Client {
    async fn connect(to: SocketAddr, number: usize) -> Result<Self> {
        let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await.context("too slow to connect")??;
        stream.set_nodelay(true)?;
        stream.write_all(&startup()).await?;
        let mut client = Self { stream, number: number as u64 };
        timeout(PATIENCE, client.until_ready()).await.context("too slow to log in")??;
        Ok(client)
    }

    async fn until_ready(&mut self) -> Result<()> {
        while read_message(&mut self.stream).await?.0 != b'Z' {}
        Ok(())
    }

    /// Bytes that no other request of any session has, there and back.
    async fn echo(&mut self, round: u64) -> Result<()> {
        let length = 20 + (self.number * 7919 + round * 104_729) % 12_000;
        let asked = Bytes(self.number << 32 | round).take(length as usize);
        let both = async {
            let request = message(b'Q', &asked);
            let (mut from, mut to) = self.stream.split();
            let (sent, answer) = tokio::join!(to.write_all(&request), async {
                let mut answer = vec![0; 5 + asked.len() + 6];
                from.read_exact(&mut answer).await.map(|_| answer)
            });
            sent?;
            let mut expected = message(b'D', &asked);
            expected.extend(message(b'Z', b"I"));
            ensure!(answer? == expected, "wrong bytes");
            Ok(())
        };
        timeout(PATIENCE, both).await.context("too slow")?
    }

    /// Has the backend reset the session, and waits for it. Whether that took another request: nobody repeats a RST that the
    /// host's queue has no room for, which happens where so many are busy (netdev_max_backlog), but what comes after it
    /// is answered with one, too.
    async fn be_reset(&mut self) -> Result<bool> {
        self.stream.write_all(&message(b'Q', b"")).await?;
        match timeout(RESET_PATIENCE, self.until_gone()).await {
            Ok(gone) => gone.map(|()| false),
            Err(_) => {
                self.stream.write_all(&message(b'Q', b"")).await?;
                self.until_gone().await.map(|()| true)
            }
        }
    }

    async fn until_gone(&mut self) -> Result<()> {
        match timeout(PATIENCE, self.stream.read(&mut [0])).await.context("nobody told the client")? {
            Ok(_) => bail!("bytes or FIN where the session was to be reset"),
            Err(error) => {
                ensure!(error.kind() == io::ErrorKind::ConnectionReset, "{error}");
                Ok(())
            }
        }
    }
}

/// Each client does its `rounds`, all at once.
async fn all_echo(clients: &mut [Option<Client>], rounds: std::ops::Range<u64>) {
    let busy: Vec<_> = clients
        .iter_mut()
        .enumerate()
        .filter_map(|(number, place)| Some((number, place.take()?)))
        .map(|(number, mut client)| {
            let rounds = rounds.clone();
            tokio::spawn(async move {
                for round in rounds {
                    client.echo(round).await.unwrap_or_else(|error| panic!("session {number}, {round}: {error:#}"));
                }
                (number, client)
            })
        })
        .collect();
    for one in busy {
        let (number, client) = one.await.unwrap();
        clients[number] = Some(client);
    }
}

async fn connect_all(rig: &Rig, count: usize) -> Vec<Option<Client>> {
    let to = rig.address();
    let mut clients: Vec<Option<Client>> = Vec::new();
    let gate = Arc::new(tokio::sync::Semaphore::new(100));
    let pending: Vec<_> = (0..count)
        .map(|number| {
            let gate = gate.clone();
            tokio::spawn(async move {
                let _turn = gate.acquire_owned().await.unwrap();
                Client::connect(to, number).await.unwrap_or_else(|error| panic!("session {number}: {error:#}"))
            })
        })
        .collect();
    for one in pending {
        clients.push(Some(one.await.unwrap()));
    }
    clients
}

/// For who watches.
fn tell(rig: &Rig, begun: Instant, what: &str) {
    let memory = rig.metric("process_resident_memory_bytes") / f64::from(1 << 20);
    println!("{}: {what} after {:.1?}, {memory:.0} MiB resident", rig.road.name(), begun.elapsed());
}

/// Those of the fate that it falls to `by` to bring about.
fn of_fate(count: usize, by: Fate) -> impl Iterator<Item = usize> {
    (0..count).filter(move |number| Fate::of(*number) == by)
}

async fn run(rig: &mut Rig, count: usize) {
    let begun = Instant::now();
    let mut clients = connect_all(rig, count).await;
    rig.wait_spliced(count);
    tell(rig, begun, &format!("{count} sessions in the kernel"));
    all_echo(&mut clients, 0..ROUNDS).await;

    for number in of_fate(count, Fate::ClientResets) {
        let client = clients[number].take().unwrap();
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    // While the others are at work, and pgsplice is not there for some of them.
    let (mut killed, mut reset) = (Vec::new(), Vec::new());
    for number in of_fate(count, Fate::Killed) {
        killed.push(clients[number].take().unwrap());
    }
    for number in of_fate(count, Fate::BackendResets) {
        reset.push(clients[number].take().unwrap());
    }
    let addresses: Vec<String> = killed.iter().map(|one| one.stream.local_addr().unwrap().to_string()).collect();
    tokio::join!(
        all_echo(&mut clients, ROUNDS..2 * ROUNDS),
        async {
            let mut unheard = 0;
            for client in &mut reset {
                unheard += usize::from(client.be_reset().await.unwrap());
            }
            assert!(unheard <= 2, "{unheard} of {} clients were not told", reset.len());
        },
        async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            tokio::task::block_in_place(|| {
                rig.kill_proxy();
                rig.start_proxy();
            });
        }
    );

    let left = count - of_fate(count, Fate::ClientResets).count() - reset.len();
    rig.wait_spliced(left);
    tell(rig, begun, &format!("pgsplice killed, {left} sessions adopted, {} reset by their ends", count - left));
    let sessions = rig.sessions();
    for session in sessions.iter().filter(|one| addresses.iter().any(|address| one["client"] == address.as_str())) {
        rig.proxy().command(&["kill", session["id"].as_str().unwrap()]).unwrap();
    }
    for client in &mut killed {
        client.until_gone().await.unwrap();
    }
    all_echo(&mut clients, 2 * ROUNDS..3 * ROUNDS).await;
    rig.wait_spliced(left - killed.len());
    rig.wait_ended("killed", killed.len() as u64);
    drop((clients, killed, reset));
    rig.wait_spliced(0);
    rig.wait_ended("client-closed", (left - addresses.len()) as u64);
    tell(rig, begun, &format!("{} killed by command, the rest at their end", addresses.len()));
}

#[test]
fn sessions_that_are_killed_at_random_take_no_other_with_them() {
    let count = std::env::var("PGSPLICE_TEST_SESSIONS").map_or(FEW, |count| count.parse().unwrap());
    for road in Road::BOTH {
        let mut rig = Setting { backend: Some("10.2.0.30:6433"), ..Setting::new(road) }.up();
        let (_backend, _) = Backend::start(&rig).unwrap();
        let host = rig.host("client").clone();
        host.on_thread(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(run(&mut rig, count));
        })
        .unwrap();
    }
}
