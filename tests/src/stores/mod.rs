//! Real stores on loopback, each started for one test and gone with it: what can be done to any of them, and a wire
//! that can be cut or slowed.

pub mod certificates;
pub mod consul;
pub mod etcd;
pub mod wire;
pub mod zookeeper;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use pgsplice::config::StoreConfig;

pub use consul::Consul;
pub use etcd::Etcd;
pub use wire::Wire;
pub use zookeeper::Zookeeper;

/// A store of one server, as a scenario sees it.
#[allow(async_fn_in_trait)]
pub trait Server: Sized {
    /// Started, and it answers.
    async fn start() -> Self;

    /// How pgsplice finds it at another port than its own, with this interval between two looks at whether it lives.
    fn at(&self, port: u16, look: Duration) -> StoreConfig;

    fn port(&self) -> u16;

    /// With Patroni's leading slash, as in `/service/lab/leader`.
    async fn put(&mut self, key: &str, value: &[u8]);

    async fn delete(&mut self, key: &str);

    /// The key with an owner, who ends at once: what a lease, a session or an ephemeral node is for.
    async fn put_owned(&mut self, key: &str, value: &[u8]) -> Owner;

    async fn end(&mut self, owner: Owner);

    /// Ends what keeps a registered key, as an expiry would.
    async fn expire(&mut self, key: &str);

    fn process(&mut self) -> &mut Process;

    /// Once [`Process::start`] was called: until it answers again.
    async fn ready(&mut self);

    /// Where everything stands that it stored.
    fn data_folder(&self) -> PathBuf;

    /// Forgets everything it stored; it must not run.
    fn wipe(&self) {
        std::fs::remove_dir_all(self.data_folder()).unwrap();
    }

    /// Keeps all of it for [`Self::restore`]; it must not run.
    fn back_up(&self) {
        copy(&self.data_folder(), &self.data_folder().with_extension("backup"));
    }

    fn restore(&self) {
        self.wipe();
        copy(&self.data_folder().with_extension("backup"), &self.data_folder());
    }

    async fn restart(&mut self) {
        self.process().restart();
        self.ready().await;
    }

    fn config(&self) -> StoreConfig {
        self.at(self.port(), Duration::from_secs(2))
    }
}

/// A lease, a session.
#[derive(Debug)]
pub struct Owner(pub String);

/// A server that can be started again.
#[derive(Debug)]
pub struct Process {
    command: Command,
    child: Option<Child>,
}

impl Process {
    /// Not yet started. It ends with the thread that starts it.
    pub fn new(mut command: Command, log: &Path) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        // SAFETY: prctl is async-signal-safe and takes no pointers here.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Self { command, child: None }
    }

    pub fn start(&mut self) {
        self.child = Some(self.command.spawn().expect("a server from `cargo xtask setup`"));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// A server that neither answers nor closes.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let pid = self.child.as_ref().unwrap().id();
        // SAFETY: kill takes no pointers, and the child is not reaped while we hold it.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// Until the attempt succeeds; what the server wrote explains when it does not.
pub async fn until_ok<T, E: std::fmt::Debug>(log: &Path, mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => {
                panic!("the server does not answer: {error:?}\n{}", std::fs::read_to_string(log).unwrap_or_default())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}

/// Below the ephemeral range, where the kernel would hand them out, and each only once.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 110) as u16 * 100;
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
