//! A host for one test: a thread with network and mount namespaces of its own, a bpffs of its own, and a client host at
//! the other end of a veth. All of it goes with the threads.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use pgsplice::config::{Guard as GuardConfig, XdpMode};

/// The proxy's side of the veth and its address; the client has `.2` and `.3`.
pub const INTERFACE: &str = "px0";
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
pub const CLIENT2: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 3);

pub struct Host {
    /// Where this host's bpffs is mounted; seen by its threads and the processes they start.
    pub bpffs: PathBuf,
    client: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs the test on a host of its own.
pub fn on_a_host(test: impl FnOnce(&Host) + Send + 'static) {
    // SAFETY: geteuid takes nothing and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test loads BPF programs and makes namespaces: run it as root");
    let done = std::thread::spawn(move || {
        unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS);
        let folder = tempfile::tempdir().unwrap();
        run("mount --make-rprivate /");
        run(&format!("mount -t bpf bpf {}", folder.path().display()));
        let client = client_host();
        run(&format!("ip addr add {PROXY}/24 dev {INTERFACE}"));
        run("ip -6 addr add fd00:200::1/64 dev px0 nodad");
        run("ip link set px0 up");
        run("ip link set lo up");
        let host = Host { bpffs: folder.path().to_owned(), client };
        host.client(|| {
            for command in [
                &format!("ip addr add {CLIENT}/24 dev cl0"),
                &format!("ip addr add {CLIENT2}/24 dev cl0"),
                "ip -6 addr add fd00:200::2/64 dev cl0 nodad",
                "ip link set cl0 up",
            ] {
                run(command);
            }
        });
        test(&host);
        // Lazily: somebody who looks at all mounts must not fail a test.
        run(&format!("umount -l {}", folder.path().display()));
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Host {
    pub fn config(&self) -> GuardConfig {
        GuardConfig { interfaces: vec![INTERFACE.into()], mode: XdpMode::Auto, pin_path: self.pins(), deny: Vec::new() }
    }

    pub fn pins(&self) -> PathBuf {
        self.bpffs.join("pgsplice")
    }

    /// Runs it in the client's network namespace.
    pub fn client<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.client.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// Connects from this address of the client's; waits half a second at most.
    pub fn connect(&self, from: Ipv4Addr, to: SocketAddr) -> std::io::Result<()> {
        self.client(move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from.into(), 0).into())?;
            socket.connect_timeout(&to.into(), Duration::from_millis(500))
        })
    }

    pub fn connect6(&self, to: SocketAddr) -> std::io::Result<()> {
        self.client(move || TcpStream::connect_timeout(&to, Duration::from_millis(500)).map(drop))
    }
}

/// A thread in a network namespace of its own that holds the other end of our veth.
fn client_host() -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        unshare(libc::CLONE_NEWNET);
        // SAFETY: gettid takes nothing and cannot fail.
        tell.send(unsafe { libc::gettid() }).unwrap();
        while let Ok(job) = queue.recv() {
            job();
        }
    });
    let client = told.recv().unwrap();
    run(&format!("ip link add {INTERFACE} type veth peer name cl0 netns {client}"));
    jobs
}

fn unshare(what: libc::c_int) {
    // SAFETY: changes only the calling thread, which was started for this.
    let done = unsafe { libc::unshare(what) };
    assert_eq!(done, 0, "unshare: {}: run this test as root", std::io::Error::last_os_error());
}

/// Runs a command in the calling thread's namespaces.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
