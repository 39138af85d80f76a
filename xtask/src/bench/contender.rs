//! Who is measured, and how each is started on the proxy host. Their configurations are the templates in `contenders/`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::testbed::{self, Testbed};
use crate::lab::{Program, Service};

/// Threads or workers of each proxy: the cores of a small dedicated host.
const THREADS: &str = "2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    /// No proxy: routed through the proxy host
    Direct,
    /// pgsplice's user-space relay
    Relay,
    Haproxy,
    Envoy,
    Nginx,
}

impl Contender {
    pub const ALL: [Self; 5] = [Self::Direct, Self::Relay, Self::Haproxy, Self::Envoy, Self::Nginx];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
        }
    }

    /// The program as the proxy host sees it.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Direct => None,
            Self::Relay => Some("/opt/pgsplice/pgsplice"),
            Self::Haproxy => Some("/usr/sbin/haproxy"),
            Self::Envoy => Some("/opt/envoy/envoy"),
            Self::Nginx => Some("/usr/sbin/nginx"),
        }
    }

    /// Whether the lab's root has it.
    pub fn is_installed(self, testbed: &Testbed) -> bool {
        let modules = (self == Self::Nginx).then_some("/usr/lib/nginx/modules/ngx_stream_module.so");
        self.program().into_iter().chain(modules).all(|file| testbed.proxy().run(["test", "-s", file]).is_ok())
    }

    /// Its template and the name its filled-in copy gets.
    fn template(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Direct => None,
            Self::Relay => Some((include_str!("contenders/pgsplice.toml"), "pgsplice.toml")),
            Self::Haproxy => Some((include_str!("contenders/haproxy.cfg"), "haproxy.cfg")),
            Self::Envoy => Some((include_str!("contenders/envoy.yaml"), "envoy.yaml")),
            Self::Nginx => Some((include_str!("contenders/nginx.conf"), "nginx.conf")),
        }
    }

    fn arguments(self, config: &str) -> Vec<&str> {
        match self {
            Self::Direct => vec![],
            Self::Relay => vec!["run", "--config", config],
            Self::Haproxy => vec!["-db", "-f", config],
            Self::Envoy => vec!["-c", config, "--concurrency", THREADS, "--disable-hot-restart", "-l", "error"],
            Self::Nginx => vec!["-e", "stderr", "-c", config],
        }
    }
}

/// A contender that stands between the client and two backends.
pub struct Running {
    /// Where clients connect: the proxy, or both backends when there is none.
    pub targets: Vec<SocketAddr>,
    service: Option<Service>,
}

impl Running {
    /// Starts it and waits until a session through it has been welcomed.
    pub fn start(contender: Contender, testbed: &Testbed, backends: [SocketAddr; 2]) -> Result<Self> {
        let (Some(program), Some((template, name))) = (contender.program(), contender.template()) else {
            return Ok(Self { targets: backends.to_vec(), service: None });
        };
        let listen = testbed.listen();
        let config = format!("{}/{name}", testbed::FOLDER);
        testbed.proxy().write(&config, fill(template, listen, backends)?)?;
        let mut argv = vec![program];
        argv.extend(contender.arguments(&config));
        let service = testbed.proxy().spawn(Program::new(contender.name(), argv))?;
        let running = Self { targets: vec![listen], service: Some(service) };
        testbed.welcome(listen).with_context(|| format!("{} lets nobody in{}", contender.name(), running.log()))?;
        // Both backends must be in rotation before the connections of a run are spread over them.
        std::thread::sleep(Duration::from_millis(500));
        Ok(running)
    }

    /// Its processes: none for *direct*.
    pub fn pids(&self) -> Vec<i32> {
        self.service.iter().flat_map(|service| family(service.pid())).collect()
    }

    /// Ends it; an error if it had ended by itself.
    pub fn stop(self, contender: Contender) -> Result<()> {
        let Some(service) = &self.service else { return Ok(()) };
        if !service.is_running() {
            bail!("{} did not survive the run{}", contender.name(), self.log());
        }
        service.stop(Duration::from_secs(5))
    }

    fn log(&self) -> String {
        let tail = self.service.as_ref().map(|service| service.log_tail(15)).unwrap_or_default();
        if tail.is_empty() { "; its log is empty".to_owned() } else { format!("; the end of its log:\n{tail}") }
    }
}

/// Puts addresses into a template. A brace that is left over is a mistake in the template.
fn fill(template: &str, listen: SocketAddr, [one, two]: [SocketAddr; 2]) -> Result<String> {
    let mut values = vec![("threads".to_owned(), THREADS.to_owned())];
    values.push(("descriptors".to_owned(), super::limit::descriptors()?.to_string()));
    for (name, address) in [("listen", listen), ("backend1", one), ("backend2", two)] {
        values.push((name.to_owned(), address.to_string()));
        values.push((format!("{name}_ip"), address.ip().to_string()));
        values.push((format!("{name}_port"), address.port().to_string()));
    }
    Ok(substitute(template, &values))
}

/// Replaces each `{name}` by its value.
pub fn substitute(template: &str, values: &[(String, String)]) -> String {
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
        for contender in Contender::ALL {
            let Some((template, name)) = contender.template() else { continue };
            let text = fill(template, address, [address, address]).unwrap();
            let left: Vec<_> = ["listen", "backend", "threads", "descriptors", "state"]
                .into_iter()
                .filter(|word| text.contains(&format!("{{{word}")))
                .collect();
            assert!(left.is_empty(), "{name}: {left:?}");
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
