//! The lab's network: a switch namespace with a bridge a segment, and hosts plugged into it by veth pairs. Nothing of
//! it has an address in the machine's own network, so any number of labs run beside each other.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use super::fault::Faults;
use super::host::Host;
use super::id::unique_id;
use super::interrupt;
use super::state::{self, HostState, NetState, NicState};

/// A network that is up. Dropping it ends every process in it and removes it; so does the end of this process, however
/// it comes, because a watcher waits for that.
#[derive(Debug)]
pub struct Net {
    id: String,
    hosts: Vec<Host>,
    /// The processes that keep the namespaces, to be reaped.
    holders: Vec<Child>,
    owner: Option<Watcher>,
    pub(super) faults: Mutex<Faults>,
}

/// What a network shall be.
#[derive(Debug, Clone)]
pub struct NetSpec {
    id: String,
    segments: Vec<Segment>,
    hosts: Vec<HostSpec>,
    wire: bool,
}

/// One bridge: a /24 and a /64.
#[derive(Debug, Clone)]
struct Segment {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// What a host shall be; see [`NetSpec::host`].
#[derive(Debug, Clone)]
pub struct HostSpec {
    name: String,
    root: PathBuf,
    nics: Vec<(String, u8)>,
    /// Further addresses (`10.0.0.100/24`) on an interface, by its number.
    extra: Vec<(usize, String)>,
    routes: Vec<String>,
    forward: bool,
    binds: Vec<(PathBuf, PathBuf)>,
}

/// The process that ends the lab when this one has gone: it waits for its standard input to end.
#[derive(Debug)]
struct Watcher {
    child: Child,
    stdin: ChildStdin,
}

impl NetSpec {
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), segments: Vec::new(), hosts: Vec::new(), wire: false }
    }

    /// A spec under [`unique_id`].
    pub fn unique() -> Self {
        Self::new(unique_id())
    }

    /// A segment named `name` whose hosts are `v4` (a /24) and `v6` (a /64) with their number as the last part.
    pub fn segment(mut self, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        self.segments.push(Segment { name: name.to_owned(), v4, v6 });
        self
    }

    pub fn host(mut self, host: HostSpec) -> Self {
        self.hosts.push(host);
        self
    }

    /// Frames as a real wire carries them: every one with its checksum and no larger than the MTU, and NAPI at the
    /// switch so that what XDP sends back or redirects arrives. Plain veth hands over big frames without checksums.
    pub fn wire(mut self) -> Self {
        self.wire = true;
        self
    }

    /// Makes it, after removing what is left of an earlier lab of this id.
    pub fn up(self) -> Result<Net> {
        state::check_id(&self.id)?;
        // SAFETY: a system call without arguments.
        if unsafe { libc::geteuid() } != 0 {
            bail!("the lab makes network namespaces: run it as root");
        }
        Net::remove(&self.id)?;
        let folder = state::folder(&self.id);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let owner = Some(Watcher::start(&self.id)?);
        interrupt::owned(&self.id);
        let mut net =
            Net { id: self.id.clone(), hosts: Vec::new(), holders: Vec::new(), owner, faults: Mutex::default() };
        fs::write(folder.join("hosts"), self.hosts_file())?;

        ip(&["netns", "add", &self.netns("switch")])?;
        let mut batch = String::from("link set lo up\n");
        for Segment { name, .. } in &self.segments {
            writeln!(batch, "link add br-{name} type bridge mcast_snooping 0")?;
            writeln!(batch, "link set br-{name} up")?;
        }
        ip_batch(&self.netns("switch"), &batch)?;

        for host in &self.hosts {
            let made = self.make_host(host).with_context(|| format!("cannot make host {}", host.name));
            let (state, holder) = made?;
            net.holders.push(holder);
            net.hosts.push(Host::open(&self.id, state)?);
        }
        if self.wire {
            self.make_wire(&net)?;
        }
        net.save()?;
        Ok(net)
    }

    fn make_host(&self, host: &HostSpec) -> Result<(HostState, Child)> {
        if host.name.len() > 12 {
            bail!("the name is longer than 12 characters, and interfaces are named after it");
        }
        let netns = self.netns(&host.name);
        ip(&["netns", "add", &netns])?;
        let mut plug = String::new();
        let mut inside = String::from("link set lo up\n");
        let mut nics = Vec::new();
        for (index, (segment, number)) in host.nics.iter().enumerate() {
            let segment = self.find_segment(segment)?;
            let nic = segment.nic(*number);
            writeln!(plug, "link add {}.{index} type veth peer name eth{index} netns {netns}", host.name)?;
            writeln!(plug, "link set {}.{index} master br-{} up", host.name, segment.name)?;
            writeln!(inside, "addr add {}/24 dev eth{index}", nic.v4)?;
            writeln!(inside, "addr add {}/64 dev eth{index} nodad", nic.v6)?;
            writeln!(inside, "link set eth{index} up")?;
            nics.push(nic);
        }
        for (index, address) in &host.extra {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            writeln!(inside, "addr add {address} dev eth{index}{nodad}")?;
        }
        for route in &host.routes {
            writeln!(inside, "route add {route}")?;
        }
        ip_batch(&self.netns("switch"), &plug)?;

        let folder = state::folder(&self.id).join(&host.name);
        fs::create_dir_all(&folder)?;
        let mut holder = Command::new("nsenter");
        holder.arg(format!("--net=/run/netns/{netns}"));
        holder.args(["unshare", "--mount", "--propagation=private", "--uts", "--ipc", "sh", "-c"]);
        holder.args([include_str!("host.sh"), "host.sh", &host.name]).arg(&host.root).arg(&folder);
        for (from, to) in &host.binds {
            holder.arg(format!("{}:{}", from.display(), to.display()));
        }
        let errors = folder.join("host.log");
        holder.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&errors)?);
        let mut child = holder.process_group(0).spawn().context("cannot run nsenter and unshare")?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said != "ready\n" {
            bail!("its file system could not be made: {}", fs::read_to_string(&errors)?.trim());
        }
        ip_batch(&netns, &inside)?;
        if host.forward {
            for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                // /proc/sys/net is that of the reader's network namespace.
                let write = format!("echo 1 > /proc/sys/net/{key}");
                checked(Command::new("ip").args(["netns", "exec", &netns, "sh", "-c", &write]))?;
            }
        }
        // nsenter and unshare exec: the child itself is the process that stays.
        let holder = child.id() as i32;
        Ok((HostState { name: host.name.clone(), holder, root: host.root.clone(), nics }, child))
    }

    fn make_wire(&self, net: &Net) -> Result<()> {
        for host in &self.hosts {
            for index in 0..host.nics.len() {
                let device = format!("eth{index}");
                net.host(&host.name).run(["ethtool", "-K", &device, "tx", "off", "gro", "on"])?;
                // The switch's end, from a host that has ethtool in its root but in the switch's network.
                let port = format!("{}.{index}", host.name);
                let ethtool = net.host(&host.name).holder().to_string();
                let switch = format!("--net=/run/netns/{}", self.netns("switch"));
                let mut command = Command::new("nsenter");
                // Without offloads it takes apart again what its GRO has put together.
                command
                    .args(["--target", &ethtool, "--mount", &switch, "ethtool", "-K", &port, "tx", "off", "gro", "on"]);
                checked(&mut command)?;
            }
        }
        Ok(())
    }

    fn find_segment(&self, name: &str) -> Result<&Segment> {
        self.segments.iter().find(|segment| segment.name == name).with_context(|| format!("no segment {name:?}"))
    }

    fn hosts_file(&self) -> String {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for host in &self.hosts {
            for (index, (segment, number)) in host.nics.iter().enumerate() {
                let Ok(segment) = self.find_segment(segment) else { continue };
                let nic = segment.nic(*number);
                // The plain name is the first interface's; every interface has name.segment.
                let plain = if index == 0 { host.name.as_str() } else { "" };
                let _ = writeln!(text, "{} {}.{} {plain}", nic.v4, host.name, segment.name);
                let _ = writeln!(text, "{} {}.{}", nic.v6, host.name, segment.name);
            }
        }
        text
    }

    fn netns(&self, host: &str) -> String {
        format!("{}{host}", state::prefix(&self.id))
    }
}

impl Segment {
    fn nic(&self, number: u8) -> NicState {
        let [a, b, c, _] = self.v4.octets();
        let v6 = Ipv6Addr::from_bits(self.v6.to_bits() | u128::from(number));
        NicState { segment: self.name.clone(), v4: Ipv4Addr::new(a, b, c, number), v6 }
    }
}

impl HostSpec {
    /// A host whose processes see the file system under `root` (changes stay the host's own); `/` is the machine's.
    pub fn new(name: &str, root: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            root: root.into(),
            nics: Vec::new(),
            extra: Vec::new(),
            routes: Vec::new(),
            forward: false,
            binds: Vec::new(),
        }
    }

    /// Plugs it into a segment under a number from 1 to 254.
    pub fn nic(mut self, segment: &str, number: u8) -> Self {
        self.nics.push((segment.to_owned(), number));
        self
    }

    /// One more address, with its prefix length, on the last interface given.
    pub fn address(mut self, address: &str) -> Self {
        self.extra.push((self.nics.len().saturating_sub(1), address.to_owned()));
        self
    }

    /// A route as `ip route add` takes it: `10.2.0.0/24 via 10.1.0.1`.
    pub fn route(mut self, route: &str) -> Self {
        self.routes.push(route.to_owned());
        self
    }

    /// It forwards packets between its segments.
    pub fn forward(mut self) -> Self {
        self.forward = true;
        self
    }

    /// A file or folder of the machine that the host sees at `to`.
    pub fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.binds.push((from.into(), to.into()));
        self
    }
}

impl Net {
    /// A lab that another process made and left running.
    pub fn attach(id: &str) -> Result<Self> {
        let state = NetState::load(id)?;
        let hosts = state.hosts.into_iter().map(|host| Host::open(id, host)).collect::<Result<_>>()?;
        Ok(Self { id: id.to_owned(), hosts, holders: Vec::new(), owner: None, faults: Mutex::default() })
    }

    /// Ends and removes a lab, or what is left of one; nothing to do is fine.
    pub fn remove(id: &str) -> Result<()> {
        state::check_id(id)?;
        checked(Command::new("sh").args(["-c", include_str!("clean.sh"), "clean.sh", "now"]).args(clean_args(id)))
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this name; asking for one that was not in the spec is a mistake in the caller.
    pub fn host(&self, name: &str) -> &Host {
        match self.find(name) {
            Some(host) => host,
            None => panic!("the lab has no host {name:?}"),
        }
    }

    pub fn find(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name() == name)
    }

    /// A command in the switch's network namespace, with the machine's own programs.
    pub fn on_switch(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}switch", state::prefix(&self.id))]);
        command
    }

    /// Leaves the lab running when this value and this process have gone.
    pub fn detach(mut self) -> Result<()> {
        self.save()?;
        if let Some(Watcher { mut child, mut stdin }) = self.owner.take() {
            stdin.write_all(b"keep\n")?;
            drop(stdin);
            child.wait()?;
            interrupt::disowned(&self.id);
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let hosts = self.hosts.iter().map(|host| host.state().clone()).collect();
        NetState { id: self.id.clone(), hosts }.save()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(Watcher { mut child, stdin }) = self.owner.take() {
            drop(stdin);
            let _ = child.wait();
            for mut holder in self.holders.drain(..) {
                let _ = holder.wait();
            }
            interrupt::disowned(&self.id);
        }
    }
}

impl Watcher {
    fn start(id: &str) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("clean.sh"), "clean.sh", "wait"]).args(clean_args(id));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("cannot start the lab's watcher")?;
        let stdin = child.stdin.take().context("the watcher has no standard input")?;
        Ok(Self { child, stdin })
    }
}

fn clean_args(id: &str) -> [PathBuf; 2] {
    [state::prefix(id).into(), state::folder(id)]
}

fn ip(args: &[&str]) -> Result<()> {
    checked(Command::new("ip").args(args))
}

fn ip_batch(netns: &str, lines: &str) -> Result<()> {
    let path = tempfile::NamedTempFile::new()?;
    fs::write(&path, lines)?;
    ip_batch_file(netns, path.path()).with_context(|| format!("ip -batch in {netns}:\n{lines}"))
}

fn ip_batch_file(netns: &str, path: &Path) -> Result<()> {
    checked(Command::new("ip").args(["-netns", netns, "-batch"]).arg(path))
}

/// Runs a command of the machine; its words are in the error.
pub(super) fn checked(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
