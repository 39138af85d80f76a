//! pgsplice on loopback between peers the test plays itself, byte by byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for a machine that is busy with other tests; a test waits for what it wants, not for this.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test, beside the tests in cargo's folder. `cargo xtask test` builds it; cargo by itself does not.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(|deps| deps.parent()).unwrap().join("pgsplice");
    assert!(
        binary.exists(),
        "{} is missing: run `cargo xtask test`, or first `cargo build --workspace`",
        binary.display()
    );
    binary
}

/// A running pgsplice with a folder, its own or its predecessor's. Killed, if it still runs, when dropped.
pub struct Proxy {
    child: Child,
    pub folder: Arc<tempfile::TempDir>,
    log: PathBuf,
}

impl Proxy {
    /// `config` without `[admin]` and `[log]`, which are ours.
    pub fn start(config: &str) -> Self {
        let proxy = Self::spawn(config);
        proxy.wait("the first answer on the admin socket", |proxy| proxy.try_get("/v1/status").is_some());
        proxy
    }

    pub fn spawn(config: &str) -> Self {
        Self::spawn_as(config, |command| command)
    }

    /// The same, as `change` has it.
    pub fn spawn_as(config: &str, change: impl FnOnce(Command) -> Command) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        write_config(&folder, config);
        Self::run(&folder, "log", change)
    }

    /// Another process with this one's configuration, as it is now, and its admin socket; `log` is the name of its log.
    pub fn successor(&self, log: &str, change: impl FnOnce(Command) -> Command) -> Self {
        Self::run(&self.folder, log, change)
    }

    fn run(folder: &Arc<tempfile::TempDir>, log: &str, change: impl FnOnce(Command) -> Command) -> Self {
        let path = folder.path().join(log);
        let log = std::fs::File::create(&path).unwrap();
        let mut command = Command::new(binary());
        command.args(["run", "--config"]).arg(folder.path().join("pgsplice.toml"));
        let mut command = change(command);
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        Self { child: command.spawn().unwrap(), folder: folder.clone(), log: path }
    }

    /// One listener on a free port, one pool; `pool` and `listener` are more keys of those sections.
    pub fn between(backends: &[SocketAddr], pool: &str, listener: &str) -> Self {
        Self::start(&Self::config(backends, pool, listener))
    }

    pub fn config(backends: &[SocketAddr], pool: &str, listener: &str) -> String {
        let backends: String =
            backends.iter().map(|address| format!("[[pool.p.backend]]\naddress = \"{address}\"\n")).collect();
        let road = match super::proxy::road().as_str() {
            "sockmap" if !listener.contains("splice") => "splice = \"sockmap\"\nsplice_after = 0",
            // The others take no session on loopback.
            _ => "",
        };
        // Sub-tables of the pool may be in `pool`, so it comes last.
        format!("[listener.l]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n{road}\n{listener}\n[pool.p]\n{pool}\n{backends}")
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn rewrite_config(&self, config: &str) {
        write_config(&self.folder, config);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Runs a client subcommand: whether it succeeded, and all it printed.
    pub fn command(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(binary())
            .args(args)
            .arg("--socket")
            .arg(self.folder.path().join("admin.sock"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// JSON from the admin socket.
    pub fn get(&self, path: &str) -> Value {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}; log:\n{}", self.log()))
    }

    /// The sum of a metric's samples.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.try_get_text("/metrics").unwrap();
        let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The same, where nobody may answer.
    pub fn try_get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.try_get_text(path)?).ok()
    }

    fn try_get_text(&self, path: &str) -> Option<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.folder.path().join("admin.sock")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: pgsplice\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// Where the only listener (or the one named) listens.
    pub fn address(&self) -> SocketAddr {
        let status = self.get("/v1/status");
        status["listeners"][0]["bound"][0].as_str().unwrap().parse().unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Ended sessions with this reason, over all listeners.
    pub fn ended(&self, reason: &str) -> u64 {
        let status = self.get("/v1/status");
        let listeners = status["listeners"].as_array().unwrap();
        listeners.iter().map(|one| one["ended"][reason].as_u64().unwrap_or(0)).sum()
    }

    pub fn sessions(&self) -> u64 {
        self.get("/v1/status")["sessions"].as_u64().unwrap()
    }

    pub fn wait(&self, what: &str, ready: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !ready(self) {
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_ended(&self, reason: &str, count: u64) {
        self.wait(&format!("{count} sessions ended with {reason}"), |proxy| proxy.ended(reason) >= count);
        assert_eq!(self.ended(reason), count);
    }

    /// Waits until every backend of the pool was probed and is a candidate.
    pub fn wait_candidates(&self, count: u64) {
        self.wait("candidates", |proxy| proxy.get("/v1/status")["pools"][0]["candidates"].as_u64() == Some(count));
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call on a child we have not waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

fn write_config(folder: &tempfile::TempDir, config: &str) {
    let admin = format!("[admin]\nsocket = \"{}\"\n", folder.path().join("admin.sock").display());
    std::fs::write(folder.path().join("pgsplice.toml"), format!("{admin}{config}")).unwrap();
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A backend the test plays: each connection gets a thread that runs `serve`. Connections that bring nothing (probes
/// of kind tcp) or an SSLRequest alone are answered and not counted.
pub struct Backend {
    pub address: SocketAddr,
    pub served: Arc<AtomicUsize>,
}

impl Backend {
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let (counted, serve) = (served.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (counted, serve) = (counted.clone(), serve.clone());
                let work = move || {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.set_nodelay(true).unwrap();
                    counted.fetch_add(1, SeqCst);
                    serve(stream);
                };
                std::thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap();
            }
        });
        Self { address, served }
    }

    /// Logs every client in, then runs `serve`.
    pub fn logged_in(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start(move |mut stream| {
            if read_startup(&mut stream).is_some() {
                stream.write_all(&login_reply()).unwrap();
                serve(stream);
            }
        })
    }

    pub fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

/// An address nobody listens on, nor will before the test itself does.
pub fn dead_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, crate::stores::free_port()).into()
}

/// A StartupMessage 3.0 for this user.
pub fn startup(user: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0database\0shop\0\0");
    let mut packet = (body.len() as u32 + 8).to_be_bytes().to_vec();
    packet.extend([0, 3, 0, 0]);
    packet.extend(body.bytes());
    packet
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    packet.extend((body.len() as u32 + 4).to_be_bytes());
    packet.extend(body);
    packet
}

/// AuthenticationOk, BackendKeyData, ReadyForQuery.
pub fn login_reply() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]), message(b'Z', b"I")].concat()
}

/// The body of a startup packet; `None` at the end of the stream.
pub fn read_startup(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

/// Sends a startup and reads the reply of [`login_reply`].
pub fn log_in(stream: &mut TcpStream) {
    stream.write_all(&startup("alice")).unwrap();
    let mut reply = vec![0; login_reply().len()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply, login_reply());
}

/// Everything up to the end of the stream, and how it ended.
pub fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, Result<(), std::io::ErrorKind>) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.map(drop).map_err(|error| error.kind()))
}

/// The fields of an ErrorResponse, or a failed test.
pub fn error_fields(bytes: &[u8]) -> std::collections::BTreeMap<char, String> {
    assert_eq!(bytes.first(), Some(&b'E'), "not an ErrorResponse: {bytes:?}");
    let fields = bytes[5..].split(|&byte| byte == 0).filter(|field| !field.is_empty());
    fields.map(|field| (char::from(field[0]), String::from_utf8_lossy(&field[1..]).into_owned())).collect()
}

/// The next close of this socket sends RST.
pub fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
    // SAFETY: `linger` is valid for the length of the call.
    let done = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    assert_eq!(done, 0);
    drop(stream);
}

/// Writes back what it reads until the end, then ends its own direction.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}
