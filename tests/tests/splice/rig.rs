//! A client host, a proxy host that pgsplice runs on, and a backend host, on two segments; all of it the test's own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use pgsplice_ebpf::flow::{self, FlowKey, Watch};
use pgsplice_tests::{Pgsplice, need_root, proxy};
use serde_json::Value;
use xtask::lab::{Host, HostSpec, Net, NetSpec, until};

use crate::older;
use crate::peer::{Client, Server};

pub const SOON: Duration = Duration::from_secs(20);
pub const MB: usize = 1 << 20;
pub const PORT: u16 = 5432;

/// The program on the proxy host's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    Xdp,
    Tc,
}

impl Road {
    pub const BOTH: [Self; 2] = [Self::Tc, Self::Xdp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

pub struct Rig {
    pub net: Net,
    pub road: Road,
    pub server: Server,
    pub proxy: Option<Pgsplice>,
    pub config: String,
}

/// What differs from test to test.
pub struct Setting {
    pub road: Road,
    pub v6: bool,
    /// `splice.mode`, if it is not the road's own.
    pub mode: Option<&'static str>,
    /// More keys of `[splice]`.
    pub splice: &'static str,
    /// More keys of the listener.
    pub listener: &'static str,
    /// More sections.
    pub more: &'static str,
    /// Bytes more in the answer to the log-in.
    pub reply: usize,
    /// Where pgsplice connects to, if not to where the backend listens.
    pub backend: Option<&'static str>,
    /// A router on each side: `near`, between the client and the front segment, and `far`.
    pub routers: bool,
    /// Frames as a real wire carries them also for TC; [`crate::wire`] needs it.
    pub wire: bool,
    /// Done on the hosts before anything runs there: (host, command); the `switch` is one, too.
    pub before: Vec<(&'static str, String)>,
}

impl Setting {
    pub fn new(road: Road) -> Self {
        Self {
            road,
            v6: false,
            mode: None,
            splice: "",
            listener: "",
            more: "",
            reply: 0,
            backend: None,
            routers: false,
            wire: road == Road::Xdp,
            before: Vec::new(),
        }
    }

    pub fn up(self) -> Rig {
        self.try_up().unwrap()
    }

    fn try_up(self) -> Result<Rig> {
        need_root()?;
        let net = if self.routers { routed() } else { plain() };
        let net = if self.wire { net.wire() } else { net }.up()?;
        for (host, command) in &self.before {
            match *host {
                "switch" => {
                    let done = net.on_switch().args(["sh", "-ec", command]).status()?;
                    anyhow::ensure!(done.success(), "{command}");
                }
                host => net.host(host).run(["sh", "-ec", command])?,
            }
        }
        let host = net.host("backend");
        let at: SocketAddr = if self.v6 { (host.v6(), 6432).into() } else { (host.v4(), 6432).into() };
        let server = Server::start(host, at, self.reply)?;
        let (mode, to) =
            (self.mode.unwrap_or(self.road.name()), self.backend.map_or_else(|| at.to_string(), str::to_owned));
        let after = if self.listener.contains("splice_after") { "" } else { "splice_after = 0\n" };
        let config = format!(
            "[splice]\ninterfaces = [\"eth0\", \"eth1\"]\nmode = \"{mode}\"\n{}\n\
             [listener.l]\nbind = [\"0.0.0.0:{PORT}\", \"[::]:{PORT}\"]\npool = \"p\"\n{after}{}\n\n{}\n\n\
             [[pool.p.backend]]\nname = \"b\"\naddress = \"{to}\"\n\n[pool.p.probe]\nkind = \"none\"\n",
            self.splice, self.listener, self.more
        );
        let proxy = Some(Pgsplice::start_unready(net.host("proxy"), "pgsplice", &config)?);
        Ok(Rig { net, road: self.road, server, proxy, config })
    }
}

/// A test by each road.
pub fn on_both(test: impl Fn(Rig)) {
    Road::BOTH.into_iter().for_each(|road| test(Setting::new(road).up()));
}

pub fn on_both_with(set: impl Fn(Setting) -> Setting, test: impl Fn(Rig)) {
    Road::BOTH.into_iter().for_each(|road| test(set(Setting::new(road)).up()));
}

/// For tests that mostly wait.
pub fn on_both_at_once(set: impl Fn(Setting) -> Setting + Sync, test: impl Fn(Rig) + Sync) {
    std::thread::scope(|scope| {
        for road in Road::BOTH {
            let (set, test) = (&set, &test);
            scope.spawn(move || test(set(Setting::new(road)).up()));
        }
    });
}

fn plain() -> NetSpec {
    segments(&[("front", 1), ("back", 2)])
        .host(HostSpec::new("client", xtask::setup::root()).nic("front", 100))
        .host(proxy::host("proxy").nic("front", 5).nic("back", 5).forward())
        .host(HostSpec::new("backend", xtask::setup::root()).nic("back", 30))
}

fn routed() -> NetSpec {
    let host = |name| HostSpec::new(name, xtask::setup::root());
    let way = |spec: HostSpec, to: u8, by: &str| {
        let (v4, v6) = by.split_once(' ').expect("one of each family");
        spec.route(&format!("10.{to}.0.0/24 via {v4}")).route(&format!("fd0{to}::/64 via {v6}"))
    };
    let proxy = proxy::host("proxy").nic("front", 5).nic("back", 5).forward();
    segments(&[("outer", 3), ("front", 1), ("back", 2), ("inner", 4)])
        .host(way(host("client").nic("outer", 100), 1, "10.3.0.1 fd03::1"))
        .host(host("near").nic("outer", 1).nic("front", 1).forward())
        .host(way(way(proxy, 3, "10.1.0.1 fd01::1"), 4, "10.2.0.1 fd02::1"))
        .host(host("far").nic("back", 1).nic("inner", 1).forward())
        .host(way(host("backend").nic("inner", 30), 2, "10.4.0.1 fd04::1"))
}

fn segments(all: &[(&str, u8)]) -> NetSpec {
    all.iter().fold(NetSpec::unique(), |net, (name, number)| {
        let v6 = Ipv6Addr::new(0xfd00 + u16::from(*number), 0, 0, 0, 0, 0, 0, 0);
        net.segment(name, Ipv4Addr::new(10, *number, 0, 0), v6)
    })
}

impl Rig {
    pub fn host(&self, name: &str) -> &Host {
        self.net.host(name)
    }

    pub fn proxy(&self) -> &Pgsplice {
        self.proxy.as_ref().unwrap()
    }

    /// pgsplice's address on the client's segment.
    pub fn address(&self) -> SocketAddr {
        let host = self.host("proxy");
        if self.server.address.is_ipv4() { (host.v4(), PORT).into() } else { (host.v6(), PORT).into() }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.host("client"), self.address()).unwrap()
    }

    /// A session that is in the kernel by now.
    pub fn spliced(&self) -> Client {
        let client = self.client();
        self.wait_spliced(1);
        client
    }

    pub fn sessions(&self) -> Vec<Value> {
        self.proxy().json(&["sessions", "--limit", "1000000"]).unwrap()["sessions"].as_array().unwrap().clone()
    }

    pub fn on_road(&self, road: &str) -> usize {
        self.sessions().iter().filter(|session| session["road"] == road).count()
    }

    pub fn wait_spliced(&self, count: usize) {
        let what = format!("{count} sessions by {}", self.road.name());
        if let Err(error) = until(&what, SOON, || self.on_road(self.road.name()) == count) {
            panic!("{error:#}: {:?}\n{}", self.sessions(), self.proxy().log().unwrap());
        }
    }

    /// Sockets of the session that the proxy's kernel has, listening ones and TIME_WAIT left out.
    pub fn sockets(&self) -> usize {
        let said = self.host("proxy").output(["ss", "-Htn", "state", "connected", "exclude", "time-wait"]).unwrap();
        said.lines().count()
    }

    /// How often sessions ended for this reason.
    pub fn ended(&self, reason: &str) -> u64 {
        self.proxy().status().unwrap()["listeners"][0]["ended"][reason].as_u64().unwrap_or(0)
    }

    pub fn wait_ended(&self, reason: &str, count: u64) {
        if let Err(error) = until(&format!("{count} × {reason}"), SOON, || self.ended(reason) == count) {
            panic!("{error:#}\n{}", self.proxy().log().unwrap());
        }
    }

    /// A metric's samples, added up.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self
            .host("proxy")
            .output(["curl", "-sf", "--unix-socket", "/run/pgsplice/pgsplice.sock", "http://x/metrics"])
            .unwrap();
        let values = text.lines().filter(|one| one.starts_with(line)).filter_map(|one| one.rsplit(' ').next());
        values.filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    /// What the programs have seen of sessions that are not in the kernel yet, by the pinned map.
    pub fn watches(&self) -> HashMap<MapData, FlowKey, Watch> {
        Map::LruHashMap(self.pinned(flow::WATCHES)).try_into().unwrap()
    }

    /// Events that found the ring buffer full.
    pub fn events_lost(&self) -> u64 {
        let counters: PerCpuArray<MapData, u64> =
            Map::PerCpuArray(self.pinned(flow::SPLICE_COUNTERS)).try_into().unwrap();
        counters.get(&flow::counter::EVENTS_LOST, 0).unwrap().iter().sum()
    }

    fn pinned(&self, map: &str) -> MapData {
        let layout = format!("v{}/maps", pgsplice_ebpf::LAYOUT_VERSION);
        MapData::from_pin(older::pins(self.host("proxy")).join(layout).join(map)).unwrap()
    }

    /// Enough sessions for pgsplice to take the next for a brief one.
    pub fn be_brief(&self) {
        for number in 1..=24 {
            drop(self.client());
            self.wait_ended("client-closed", number);
        }
    }

    /// Packets of spliced sessions with this outcome, as `pgsplice_splice_other_packets_total` has it.
    pub fn other_packets(&self, outcome: &str) -> f64 {
        self.metric(&format!("pgsplice_splice_other_packets_total{{outcome=\"{outcome}\"}}"))
    }

    /// A counter of a host's TCP: `RetransSegs`, `PAWSEstab`.
    pub fn tcp_counter(&self, host: &str, name: &str) -> u64 {
        let text = self.host(host).output(["cat", "/proc/net/snmp", "/proc/net/netstat"]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.chunks(2).find_map(|pair| {
            let at = pair[0].split(' ').position(|word| word == name)?;
            pair[1].split(' ').nth(at)?.parse().ok()
        });
        found.unwrap_or_else(|| panic!("{host} has no counter {name}"))
    }

    /// What `done` gave, or the end of the test, with all that pgsplice can tell.
    pub fn must<T>(&self, what: &str, done: anyhow::Result<T>) -> T {
        done.unwrap_or_else(|error| {
            let outcomes = self
                .host("proxy")
                .output(["curl", "-sf", "--unix-socket", "/run/pgsplice/pgsplice.sock", "http://x/metrics"])
                .unwrap_or_default();
            let packets: Vec<&str> =
                outcomes.lines().filter(|line| line.starts_with("pgsplice_splice_") && !line.ends_with(" 0")).collect();
            let sockets = ["client", "proxy", "backend"].map(|host| {
                let look = "ss -Htino; nstat -asz TcpRetransSegs TcpExtPAWSEstab TcpExtTCPTimeouts";
                format!("{host}:\n{}", self.host(host).output(["sh", "-c", look]).unwrap_or_default())
            });
            panic!(
                "{what} by {}: {error:#}\n{:?}\n{packets:#?}\n{}\n{}",
                self.road.name(),
                self.sessions(),
                sockets.concat(),
                self.proxy().log().unwrap()
            );
        })
    }

    /// Connections that the backend has.
    pub fn at_backend(&self) -> usize {
        self.server.connections.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Both ends and pgsplice know of no session any more.
    pub fn wait_over(&self) {
        if let Err(error) =
            until("every end to have heard", SOON, || self.at_backend() == 0 && self.sessions().is_empty())
        {
            panic!("{error:#}: {} at the backend, {:?}", self.at_backend(), self.sessions());
        }
    }

    /// `kill -9`, without a new start.
    pub fn kill_proxy(&mut self) {
        let proxy = self.proxy.take().unwrap();
        proxy.service().kill(libc::SIGKILL).unwrap();
        until("its end", SOON, || !proxy.service().is_running()).unwrap();
    }

    /// Has the running process replaced by a successor, and returns when that answers.
    pub fn upgrade(&self) -> Successor {
        let said = self.proxy().json(&["upgrade"]).unwrap_or_else(|error| {
            panic!("{error:#}; the log:\n{}", self.proxy().log().unwrap());
        });
        Successor { pid: said["successor"].as_i64().unwrap() as i32 }
    }

    pub fn start_proxy(&mut self) {
        self.proxy = Some(Pgsplice::start_unready(self.net.host("proxy"), "pgsplice", &self.config).unwrap());
    }
}

/// A process that pgsplice itself started. Killed when dropped.
pub struct Successor {
    pub pid: i32,
}

impl Successor {
    pub fn is_running(&self) -> bool {
        std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // SAFETY: plain system call.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }
}
