//! An etcd of one or three members on loopback, started for one test and gone with it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, TlsOptions};
use tempfile::TempDir;

pub struct Etcd {
    members: Vec<Member>,
    tls: Option<(TlsOptions, Vec<String>)>,
    extra: Vec<String>,
    folder: TempDir,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Etcd {
    pub fn start(members: usize) -> Self {
        Self::start_with(members, &[], None)
    }

    /// `tls`: what a client needs, and the server's own flags.
    pub fn start_with(members: usize, extra: &[&str], tls: Option<(TlsOptions, Vec<String>)>) -> Self {
        let members =
            (0..members).map(|_| Member { client_port: free_port(), peer_port: free_port(), process: None }).collect();
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut etcd = Self { members, tls, extra, folder: TempDir::new().unwrap() };
        for index in 0..etcd.members.len() {
            etcd.run(index);
        }
        for index in 0..etcd.members.len() {
            etcd.wait_for(index);
        }
        etcd
    }

    pub fn endpoint(&self, index: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[index].client_port)
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    pub async fn client(&self) -> Client {
        self.client_as(None).await
    }

    pub async fn client_as(&self, user: Option<(&str, &str)>) -> Client {
        let mut options = ConnectOptions::new().with_timeout(Duration::from_secs(10));
        if let Some((tls, _)) = &self.tls {
            options = options.with_tls(tls.clone());
        }
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        Client::connect(self.endpoints(), Some(options)).await.unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn restart(&mut self, index: usize) {
        self.kill(index);
        self.run(index);
        self.wait_for(index);
    }

    /// Forgets everything it stored.
    pub fn wipe(&mut self, index: usize) {
        self.kill(index);
        std::fs::remove_dir_all(self.data(index)).unwrap();
    }

    /// A server that neither answers nor closes.
    pub fn freeze(&self, index: usize) {
        self.signal(index, libc::SIGSTOP);
    }

    pub fn thaw(&self, index: usize) {
        self.signal(index, libc::SIGCONT);
    }

    fn signal(&self, index: usize, signal: i32) {
        let pid = self.members[index].process.as_ref().unwrap().id();
        // SAFETY: kill takes no pointers, and the child is not reaped while we hold it.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("m{index}"))
    }

    fn run(&mut self, index: usize) {
        let initial: Vec<_> =
            self.members.iter().enumerate().map(|(i, m)| format!("m{i}=http://127.0.0.1:{}", m.peer_port)).collect();
        let peer = format!("http://127.0.0.1:{}", self.members[index].peer_port);
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(xtask::setup::root().join("usr/bin/etcd"));
        command
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(self.data(index))
            .args(["--listen-client-urls", &self.endpoint(index), "--advertise-client-urls", &self.endpoint(index)])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "test"])
            .args(["--unsafe-no-fsync", "--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(&self.extra)
            .args(self.tls.iter().flat_map(|(_, flags)| flags))
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl is async-signal-safe and takes no pointers here.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.members[index].process = Some(command.spawn().expect("etcd from `cargo xtask setup`"));
    }

    /// Until the port accepts, and a moment for an election.
    fn wait_for(&self, index: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.members[index].client_port)).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

/// Below the ephemeral range, where the kernel would hand them out, and each only once.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 21_000 + (std::process::id() % 1000) as u16 * 10;
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
