//! A client host, a proxy host that pgsplice runs on, and a backend host, on two segments; all of it the test's own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use pgsplice_tests::{Pgsplice, need_root, proxy};
use serde_json::Value;
use xtask::lab::{Host, HostSpec, Net, NetSpec, until};

use crate::peer::{Client, Server};

pub const SOON: Duration = Duration::from_secs(20);
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
    /// More keys of `[splice]`.
    pub splice: &'static str,
    /// More keys of the listener.
    pub listener: &'static str,
    /// More sections.
    pub more: &'static str,
    /// Bytes more in the answer to the log-in.
    pub reply: usize,
    /// Done on the hosts before anything runs there: (host, command).
    pub before: Vec<(&'static str, &'static str)>,
}

impl Setting {
    pub fn new(road: Road) -> Self {
        Self { road, v6: false, splice: "", listener: "", more: "", reply: 0, before: Vec::new() }
    }

    pub fn up(self) -> Rig {
        self.try_up().unwrap()
    }

    fn try_up(self) -> Result<Rig> {
        need_root()?;
        let net = NetSpec::unique()
            .segment("front", Ipv4Addr::new(10, 1, 0, 0), Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0))
            .segment("back", Ipv4Addr::new(10, 2, 0, 0), Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0))
            .host(HostSpec::new("client", xtask::setup::root()).nic("front", 100))
            .host(proxy::host("proxy").nic("front", 5).nic("back", 5).forward())
            .host(HostSpec::new("backend", xtask::setup::root()).nic("back", 30));
        let net = if self.road == Road::Xdp { net.wire() } else { net }.up()?;
        for (host, command) in &self.before {
            net.host(host).run(["sh", "-ec", command])?;
        }
        let host = net.host("backend");
        let at: SocketAddr = if self.v6 { (host.v6(), 6432).into() } else { (host.v4(), 6432).into() };
        let server = Server::start(host, at, self.reply)?;
        let road = self.road.name();
        let after = if self.listener.contains("splice_after") { "" } else { "splice_after = 0\n" };
        let config = format!(
            "[splice]\ninterfaces = [\"eth0\", \"eth1\"]\nmode = \"{road}\"\n{}\n\
             [listener.l]\nbind = [\"0.0.0.0:{PORT}\", \"[::]:{PORT}\"]\npool = \"p\"\n{after}{}\n\n{}\n\n\
             [[pool.p.backend]]\nname = \"b\"\naddress = \"{at}\"\n\n[pool.p.probe]\nkind = \"none\"\n",
            self.splice, self.listener, self.more
        );
        let proxy = Some(Pgsplice::start_unready(net.host("proxy"), "pgsplice", &config)?);
        Ok(Rig { net, road: self.road, server, proxy, config })
    }
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
        self.proxy().json(&["sessions"]).unwrap()["sessions"].as_array().unwrap().clone()
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
