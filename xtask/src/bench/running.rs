//! A contender that runs: how it is started on the proxy host, what it says of itself, how it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;

use super::contender::Contender;
use super::figure::{Figure, Sample};
use super::metrics::{self, Metrics};
use super::testbed::{self, Testbed};
use crate::lab::{Program, Service};

/// Threads or workers of each proxy: the cores of a small dedicated host.
const THREADS: &str = "2";
const PGSPLICE: &str = "/opt/pgsplice/pgsplice";
/// Ports that the splice gives out itself and the kernel must not.
const SOURCE_PORTS: &str = "12000-60000";
/// Share of its sessions without which a figure is not its road's.
const ENOUGH: f64 = 0.95;
/// Where pgsplice keeps what outlives it.
const PINS: &str = "/sys/fs/bpf/pgsplice";

/// A contender that stands between the client and the backends.
pub struct Running {
    /// Where clients connect: the proxy, or every backend when there is none.
    pub targets: Vec<SocketAddr>,
    contender: Contender,
    /// None for *direct*.
    service: Option<Service>,
    /// Where its admin socket is, as this process reaches it; None for what is not pgsplice.
    admin: Option<PathBuf>,
    /// Sessions on its road when it was last looked at.
    standing: Mutex<Option<f64>>,
}

/// Why a contender cannot be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    NotInstalled,
    /// This pgsplice does not have the road yet.
    NotThereYet,
}

impl Missing {
    pub fn note(self) -> &'static str {
        match self {
            Self::NotInstalled => "not installed",
            Self::NotThereYet => "not there yet",
        }
    }
}

impl Running {
    /// Starts it, with kernel maps for `sessions` where that is not the default, and waits until a session through it has
    /// been welcomed.
    pub fn start(
        contender: Contender,
        testbed: &Testbed,
        backends: &[SocketAddr],
        sessions: Option<usize>,
    ) -> Result<Self> {
        let Some(program) = program(contender) else {
            return Ok(Self {
                targets: backends.to_vec(),
                contender,
                service: None,
                admin: None,
                standing: Mutex::default(),
            });
        };
        let config = write_config(contender, testbed, backends, sessions)?;
        let mut argv = vec![program];
        argv.extend(arguments(contender, &config));
        if contender.road().is_some() {
            // What an earlier one left in the kernel would be taken over.
            testbed.proxy().run(["rm", "-rf", PINS])?;
        }
        testbed.reserve_ports(if contender.is_spliced() { SOURCE_PORTS } else { "" })?;
        let service = testbed.proxy().spawn(Program::new(contender.name(), argv))?;
        let admin = contender.road().map(|_| testbed.on_proxy(&format!("{}/pgsplice.sock", testbed::FOLDER)));
        let standing = Mutex::default();
        let running = Self { targets: vec![testbed.listen()], contender, service: Some(service), admin, standing };
        testbed
            .welcome(testbed.listen())
            .with_context(|| format!("{} lets nobody in{}", contender.name(), running.log()))?;
        // Both backends must be in rotation before the connections of a run are spread over them.
        std::thread::sleep(Duration::from_millis(500));
        Ok(running)
    }

    /// Its processes: none for *direct*.
    pub fn pids(&self) -> Vec<i32> {
        self.service.iter().flat_map(|service| family(service.pid())).collect()
    }

    /// What pgsplice counts; `None` for the others.
    pub fn metrics(&self) -> Result<Option<Metrics>> {
        self.admin.as_deref().map(metrics::scrape).transpose()
    }

    /// Counts the sessions that are on its road now.
    pub fn look(&self) -> Result<()> {
        if let (Some(road), Some(metrics)) = (self.contender.road(), self.metrics()?) {
            let here = [("phase", "forward"), ("road", road.taken)];
            *self.standing.lock() = Some(metrics.sum("pgsplice_sessions", &here).unwrap_or(0.0));
        }
        Ok(())
    }

    /// Adds to a measurement how many of its sessions took the road it stands for; where they did not, it is none.
    /// `standing` sessions were there when [`Self::look`] did; without, all that ever came are meant.
    pub fn with_road(&self, sample: Sample, standing: Option<usize>) -> Result<Sample> {
        let (Some(road), Some(metrics)) = (self.contender.road(), self.metrics()?) else { return Ok(sample) };
        let (took, of) = match standing {
            Some(standing) => (*self.standing.lock(), Some(standing as f64)),
            // The relay counts none.
            None if !self.contender.is_spliced() => return Ok(sample),
            None => (
                metrics.sum("pgsplice_handoffs_total", &[("road", road.taken)]),
                metrics.sum("pgsplice_sessions_accepted_total", &[]),
            ),
        };
        let (Some(took), Some(of)) = (took, of) else { bail!("it does not say how many sessions took the road") };
        let percent = 100.0 * took / of.max(1.0);
        // Which road sessions that come and go should take is for `auto` to say.
        let is_free = self.contender == Contender::Auto && standing.is_none();
        // One may be the probe's that looked whether the way is open, and was gone at once.
        let is_enough = took + 1.0 >= ENOUGH * of;
        ensure!(is_free || is_enough, "only {took} of {of} sessions took the road");
        Ok(sample.with(Figure::OnRoadPercent, percent.min(100.0)))
    }

    /// Ends it; an error if it had ended by itself.
    pub fn stop(self) -> Result<()> {
        let Some(service) = &self.service else { return Ok(()) };
        if !service.is_running() {
            bail!("{} did not survive the run{}", self.contender.name(), self.log());
        }
        service.stop(Duration::from_secs(5))
    }

    fn log(&self) -> String {
        let tail = self.service.as_ref().map(|service| service.log_tail(15)).unwrap_or_default();
        if tail.is_empty() { "; its log is empty".to_owned() } else { format!("; the end of its log:\n{tail}") }
    }
}

/// However a measurement ends, the next contender needs the address.
impl Drop for Running {
    fn drop(&mut self) {
        if let Some(service) = &self.service
            && service.kill(libc::SIGKILL).is_ok()
        {
            let _ = service.wait(Duration::from_secs(5));
        }
    }
}

/// Whether it can be started: `None` if so.
pub fn missing(contender: Contender, testbed: &Testbed) -> Result<Option<Missing>> {
    let modules = (contender == Contender::Nginx).then_some("/usr/lib/nginx/modules/ngx_stream_module.so");
    let is_there = |file| testbed.proxy().run(["test", "-s", file]).is_ok();
    if !program(contender).into_iter().chain(modules).all(is_there) {
        return Ok(Some(Missing::NotInstalled));
    }
    if contender.road().is_none() {
        return Ok(None);
    }
    let config = write_config(contender, testbed, &testbed.echo_servers(), None)?;
    match testbed.proxy().run([PGSPLICE, "check", "--config", &config]) {
        Ok(()) => Ok(None),
        Err(error) if error.to_string().contains("unknown key") => Ok(Some(Missing::NotThereYet)),
        Err(error) => Err(error),
    }
}

/// The program as the proxy host sees it.
fn program(contender: Contender) -> Option<&'static str> {
    match contender {
        Contender::Direct | Contender::DirectAgain => None,
        Contender::Haproxy | Contender::HaproxySplice => Some("/usr/sbin/haproxy"),
        Contender::Envoy => Some("/opt/envoy/envoy"),
        Contender::Nginx => Some("/usr/sbin/nginx"),
        Contender::Relay | Contender::Xdp | Contender::Tc | Contender::Auto | Contender::Sockmap => Some(PGSPLICE),
    }
}

fn arguments(contender: Contender, config: &str) -> Vec<&str> {
    match contender {
        Contender::Direct | Contender::DirectAgain => vec![],
        Contender::Haproxy | Contender::HaproxySplice => vec!["-db", "-f", config],
        Contender::Envoy => vec!["-c", config, "--concurrency", THREADS, "--disable-hot-restart", "-l", "error"],
        Contender::Nginx => vec!["-e", "stderr", "-c", config],
        _ => vec!["run", "--config", config],
    }
}

/// Its template and the name its filled-in copy gets.
fn template(contender: Contender) -> Option<(&'static str, &'static str)> {
    match contender {
        Contender::Direct | Contender::DirectAgain => None,
        Contender::Haproxy | Contender::HaproxySplice => Some((include_str!("contenders/haproxy.cfg"), "haproxy.cfg")),
        Contender::Envoy => Some((include_str!("contenders/envoy.yaml"), "envoy.yaml")),
        Contender::Nginx => Some((include_str!("contenders/nginx.conf"), "nginx.conf")),
        _ => Some((include_str!("contenders/pgsplice.toml"), "pgsplice.toml")),
    }
}

fn write_config(
    contender: Contender,
    testbed: &Testbed,
    backends: &[SocketAddr],
    sessions: Option<usize>,
) -> Result<String> {
    let (template, name) = template(contender).context("it has no configuration")?;
    let path = format!("{}/{name}", testbed::FOLDER);
    let place = Place { listen: testbed.listen(), backends, interfaces: testbed.proxy_interfaces(), sessions };
    testbed.proxy().write(&path, fill(template, contender, &place)?)?;
    Ok(path)
}

/// What a configuration says of the host it is for.
struct Place<'a> {
    listen: SocketAddr,
    backends: &'a [SocketAddr],
    interfaces: &'a [&'a str],
    sessions: Option<usize>,
}

/// Puts addresses into a template. A brace that is left over is a mistake in the template.
fn fill(template: &str, contender: Contender, place: &Place) -> Result<String> {
    let [one, two, ..] = *place.backends else { bail!("a contender needs two backends") };
    let mut values = BTreeMap::from([
        ("threads".to_owned(), THREADS.to_owned()),
        ("descriptors".to_owned(), super::limit::descriptors()?.to_string()),
        (
            "options".to_owned(),
            if contender == Contender::HaproxySplice { "option splice-auto" } else { "" }.to_owned(),
        ),
        ("backends".to_owned(), place.backends.iter().map(backend_section).collect()),
        ("splice".to_owned(), splice_section(contender, place)),
        ("after".to_owned(), splice_after(contender).to_owned()),
        ("road".to_owned(), contender.road().map_or("", |road| road.wanted).to_owned()),
    ]);
    for (name, address) in [("listen", place.listen), ("backend1", one), ("backend2", two)] {
        values.insert(name.to_owned(), address.to_string());
        values.insert(format!("{name}_ip"), address.ip().to_string());
        values.insert(format!("{name}_port"), address.port().to_string());
    }
    Ok(substitute(template, &values))
}

fn backend_section(address: &SocketAddr) -> String {
    format!("[[pool.bouncers.backend]]\naddress = \"{address}\"\n\n")
}

/// `[splice]`, for a road that needs it.
fn splice_section(contender: Contender, place: &Place) -> String {
    let Some(mode) = contender.road().and_then(|road| road.mode) else { return String::new() };
    let interfaces = place.interfaces;
    let sessions = place.sessions.map(|sessions| format!("max_sessions = {sessions}\n")).unwrap_or_default();
    format!("[splice]\ninterfaces = {interfaces:?}\nmode = {mode:?}\nsource_ports = {SOURCE_PORTS:?}\n{sessions}")
}

/// `auto` stands for the defaults; the roads by name for what each hand-off costs.
fn splice_after(contender: Contender) -> &'static str {
    match contender {
        Contender::Xdp | Contender::Tc | Contender::Sockmap => "splice_after = 0\n",
        _ => "",
    }
}

/// Replaces each `{name}` by its value.
pub fn substitute(template: &str, values: &BTreeMap<String, String>) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// A process and all that descend from it.
fn family(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![root];
    let mut at = 0;
    while let Some(&pid) = family.get(at) {
        family.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child));
        at += 1;
    }
    family
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    // The name in field 2 may hold spaces and parentheses: count from its last one. Field 4 is the parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_every_template_is_filled() {
        let address = "10.0.0.1:5432".parse().unwrap();
        let place =
            Place { listen: address, backends: &[address; 3], interfaces: &["eth0", "eth1"], sessions: Some(100) };
        for contender in Contender::ALL {
            let Some((template, name)) = template(contender) else { continue };
            let text = fill(template, contender, &place).unwrap();
            let words = ["listen", "backend", "threads", "descriptors", "options", "splice", "road"];
            let left: Vec<_> = words.into_iter().filter(|word| text.contains(&format!("{{{word}"))).collect();
            assert!(left.is_empty(), "{name}: {left:?}");
            let splice = text.contains("[splice]\ninterfaces = [\"eth0\", \"eth1\"]\nmode = ");
            assert_eq!(splice, contender.road().is_some_and(|road| road.mode.is_some()), "{name}:\n{text}");
        }
    }

    #[test]
    fn a_family_is_the_process_and_its_children() {
        let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
        let family = family(std::process::id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(family.contains(&(std::process::id() as i32)) && family.contains(&(child.id() as i32)));
    }
}
