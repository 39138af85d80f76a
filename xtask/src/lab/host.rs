//! A host of the lab: a network, mount, UTS and IPC namespace of its own, in which ordinary commands and servers run.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::ns::{Ids, Namespaces};
use super::service::{Program, Service};
use super::state::{self, HostState};

/// What processes on a host find in their environment; PostgreSQL's programs are on the path.
const PATH: &str =
    "/opt/pgsplice:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/17/bin";

/// A handle on a host; clones mean the same host. It is of use while its `Net` lives.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lab: String,
    state: HostState,
    namespaces: Namespaces,
    users: BTreeMap<String, (Ids, CString)>,
}

impl Host {
    pub(super) fn open(lab: &str, state: HostState) -> Result<Self> {
        let namespaces = Namespaces::of(state.holder)?;
        let users = read_users(&state.root.join("etc/passwd"))?;
        Ok(Self(Arc::new(Inner { lab: lab.to_owned(), state, namespaces, users })))
    }

    pub fn name(&self) -> &str {
        &self.0.state.name
    }

    /// Its address on its first segment.
    pub fn v4(&self) -> Ipv4Addr {
        self.0.state.nics[0].v4
    }

    /// Its IPv6 address on its first segment.
    pub fn v6(&self) -> Ipv6Addr {
        self.0.state.nics[0].v6
    }

    /// Its address on a named segment.
    pub fn v4_on(&self, segment: &str) -> Option<Ipv4Addr> {
        self.0.state.nics.iter().find(|nic| nic.segment == segment).map(|nic| nic.v4)
    }

    /// Its IPv6 address on a named segment.
    pub fn v6_on(&self, segment: &str) -> Option<Ipv6Addr> {
        self.0.state.nics.iter().find(|nic| nic.segment == segment).map(|nic| nic.v6)
    }

    /// Its interface on a named segment: `eth0`, `eth1`, …
    pub fn device_on(&self, segment: &str) -> Option<String> {
        self.0.state.nics.iter().position(|nic| nic.segment == segment).map(|index| format!("eth{index}"))
    }

    /// The name of its network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> String {
        format!("{}{}", state::prefix(&self.0.lab), self.name())
    }

    /// Where the lab keeps this host's logs and records, on the machine.
    pub fn folder(&self) -> PathBuf {
        state::folder(&self.0.lab).join(self.name())
    }

    /// The process that keeps its namespaces: `nsenter --target` takes it.
    pub fn holder(&self) -> i32 {
        self.0.state.holder
    }

    /// A command that will run on this host as root, in `/`, with a clean environment.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        self.command_in(argv, None, c"/", false)
    }

    /// The same as another user of the host's root, in that user's home.
    pub fn command_as<S: AsRef<OsStr>>(&self, user: &str, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let (ids, home) = self.user(user)?;
        let mut command = self.command_in(argv, Some(ids), home, false);
        command.env("USER", user).env("HOME", OsStr::new(&*home.to_string_lossy()));
        Ok(command)
    }

    /// Runs to the end; an exit status other than 0 is an error that shows what it wrote.
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<()> {
        self.output(argv).map(|_| ())
    }

    /// The same, and gives what it wrote to stdout.
    pub fn output<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String> {
        self.finish(self.command(argv))
    }

    /// The same as another user.
    pub fn output_as<S: AsRef<OsStr>>(&self, user: &str, argv: impl IntoIterator<Item = S>) -> Result<String> {
        self.finish(self.command_as(user, argv)?)
    }

    /// Starts a server; its stdout and stderr go to `<name>.log` in [`Self::folder`].
    pub fn spawn(&self, program: Program) -> Result<Service> {
        Service::start(self, program)
    }

    /// A server that was started on this host before, by this process or another.
    pub fn service(&self, name: &str) -> Result<Service> {
        Service::find(self, name)
    }

    /// Every server ever started on this host.
    pub fn services(&self) -> Result<Vec<Service>> {
        Service::names(self)?.iter().map(|name| self.service(name)).collect()
    }

    /// Writes a file of this host, with the folders above it, readable by all.
    pub fn write(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> Result<()> {
        self.install(path.as_ref(), text.as_ref(), "root", "644")
    }

    /// The same for `owner` alone.
    pub fn write_private(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>, owner: &str) -> Result<()> {
        self.install(path.as_ref(), text.as_ref(), owner, "600")
    }

    fn install(&self, path: &Path, text: &[u8], owner: &str, mode: &str) -> Result<()> {
        let target = path.display().to_string();
        let mut command = self.command(["install", "-D", "-o", owner, "-m", mode, "/dev/stdin", &target]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, text)?;
        }
        let output = child.wait_with_output()?;
        self.check(&command, &output).with_context(|| format!("cannot write {target} on {}", self.name()))
    }

    /// Reads a file of this host.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        self.output([OsStr::new("cat"), path.as_ref().as_os_str()])
    }

    /// Runs `work` in this process on a thread that sees the host's network; see [`Namespaces::on_thread`].
    pub fn on_thread<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.namespaces.on_thread(work)
    }

    pub(super) fn state(&self) -> &HostState {
        &self.0.state
    }

    pub(super) fn service_command(&self, argv: &[String], user: Option<&str>) -> Result<Command> {
        let Some(user) = user else { return Ok(self.command_in(argv, None, c"/", true)) };
        let (ids, home) = self.user(user)?;
        let mut command = self.command_in(argv, Some(ids), home, true);
        command.env("USER", user).env("HOME", OsStr::new(&*home.to_string_lossy()));
        Ok(command)
    }

    fn command_in<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
        ids: Option<Ids>,
        folder: &std::ffi::CStr,
        detached: bool,
    ) -> Command {
        let mut argv = argv.into_iter();
        let program = argv.next().map_or_else(|| OsStr::new("true").to_owned(), |program| program.as_ref().to_owned());
        let mut command = Command::new(program);
        command.args(argv).env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
        if let Some(term) = std::env::var_os("TERM") {
            command.env("TERM", term);
        }
        self.0.namespaces.prepare(&mut command, ids, folder, detached);
        command
    }

    fn user(&self, name: &str) -> Result<(Ids, &std::ffi::CStr)> {
        let Some((ids, home)) = self.0.users.get(name) else { bail!("{} has no user {name:?}", self.name()) };
        Ok((*ids, home))
    }

    fn finish(&self, mut command: Command) -> Result<String> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{}: cannot run {command:?}", self.name()))?;
        self.check(&command, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn check(&self, command: &Command, output: &Output) -> Result<()> {
        if !output.status.success() {
            let argv: Vec<_> =
                std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
            bail!(
                "{}: {} ended with {}\n{}{}",
                self.name(),
                argv.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

fn read_users(passwd: &Path) -> Result<BTreeMap<String, (Ids, CString)>> {
    let text = fs::read_to_string(passwd)
        .with_context(|| format!("{} is not a root to run in: run cargo xtask setup", passwd.display()))?;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let ids = Ids { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? };
        Some((fields[0].to_owned(), (ids, CString::new(*fields.get(5)?).ok()?)))
    };
    Ok(text.lines().filter_map(parse).collect())
}
