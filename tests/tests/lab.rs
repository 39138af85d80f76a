//! The lab itself: what the other tests take for granted about hosts, links and faults.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use xtask::lab::{HostSpec, Net, NetSpec, Program, until};

const SOON: Duration = Duration::from_secs(20);

fn two_hosts() -> Net {
    let root = xtask::setup::root();
    NetSpec::unique()
        .segment("lan", Ipv4Addr::new(10, 77, 0, 0), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0))
        .host(HostSpec::new("left", &root).nic("lan", 1))
        .host(HostSpec::new("right", &root).nic("lan", 2))
        .up()
        .unwrap()
}

fn hears(from: &str, to: &str, net: &Net) -> bool {
    let (port, from) = (7000, net.host(from));
    let address = (net.host(to).v4(), port).into();
    from.on_thread(|| TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()).unwrap()
}

#[test]
fn hosts_hear_each_other_until_the_switch_drops_them() {
    let net = two_hosts();
    let right = net.host("right");
    let _listener = right.on_thread(|| TcpListener::bind("0.0.0.0:7000").unwrap()).unwrap();
    until("the first word", SOON, || hears("left", "right", &net)).unwrap();
    net.cut("right").unwrap();
    assert!(!hears("left", "right", &net));
    net.heal("right").unwrap();
    until("the network to be whole", SOON, || hears("left", "right", &net)).unwrap();
    net.partition("left", "right").unwrap();
    assert!(!hears("left", "right", &net));
    net.heal("left").unwrap();
    net.loss("right", 999).unwrap();
    assert!(!hears("left", "right", &net));
}

#[test]
fn a_host_has_its_own_name_files_and_network() {
    let net = two_hosts();
    let (left, right) = (net.host("left"), net.host("right"));
    assert_eq!(left.output(["cat", "/proc/sys/kernel/hostname"]).unwrap(), "left\n");
    left.write("/etc/only-here", "yes").unwrap();
    assert_eq!(left.read("/etc/only-here").unwrap(), "yes");
    assert!(right.read("/etc/only-here").is_err());
    assert!(!xtask::setup::root().join("etc/only-here").exists());
    assert_eq!(left.output(["ls", "/sys/class/net"]).unwrap(), "eth0\nlo\n");
    assert_eq!(left.output(["stat", "-f", "-c", "%T", "/sys/fs/bpf"]).unwrap(), "bpf_fs\n");
    assert!(left.output(["getent", "hosts", "right"]).unwrap().contains("10.77.0.2"));
    assert_eq!(left.output_as("postgres", ["id", "-un"]).unwrap(), "postgres\n");
    let error = left.run(["sh", "-c", "echo why >&2; exit 3"]).unwrap_err().to_string();
    assert!(error.contains("left: sh -c") && error.contains("exit status: 3") && error.contains("why"), "{error}");
}

#[test]
fn a_killed_service_is_seen_and_started_again() {
    let net = two_hosts();
    let service = net.host("left").spawn(Program::new("ticker", ["sh", "-c", "echo up; exec sleep 1000"])).unwrap();
    let first = service.pid();
    until("the first line", SOON, || service.log_tail(1) == "up").unwrap();
    service.kill(9).unwrap();
    service.wait(SOON).unwrap();
    assert!(!service.is_running());
    service.restart().unwrap();
    assert!(service.is_running() && service.pid() != first);
    assert_eq!(net.host("left").service("ticker").unwrap().pid(), service.pid());
}

#[test]
fn a_dropped_net_leaves_nothing() {
    let net = two_hosts();
    let (folder, netns) = (net.host("left").folder(), net.host("left").netns());
    let service = net.host("left").spawn(Program::new("stay", ["sleep", "1000"])).unwrap();
    let process = format!("/proc/{}", service.pid());
    assert!(Path::new(&process).exists() && folder.exists());
    drop(net);
    drop(service);
    assert!(!folder.exists());
    assert!(!Path::new("/run/netns").join(netns).exists());
}

/// The same when the process that made it is killed: this test runs itself once more and kills that.
#[test]
fn a_killed_owner_leaves_nothing() {
    if let Ok(marker) = std::env::var("LAB_OWNER_TO_KILL") {
        let net = two_hosts();
        net.host("left").spawn(Program::new("stay", ["sleep", "1000"])).unwrap();
        std::fs::write(marker, net.id()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("id");
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "a_killed_owner_leaves_nothing"]).env("LAB_OWNER_TO_KILL", &marker);
    let mut owner = owner.spawn().unwrap();
    let read = || std::fs::read_to_string(&marker).unwrap_or_default();
    until("the other lab", SOON, || !read().is_empty()).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let left = Path::new("/run/netns").join(format!("pgs{}-left", read()));
    until("its namespaces to go", SOON, || !left.exists()).unwrap();
    until("its folder to go", SOON, || !Path::new("/var/lib/pgsplice-lab").join(read()).exists()).unwrap();
}
