//! Three Patroni members with PostgreSQL on hosts `pg1` to `pg3`, and what a test asks or does to them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::store::PYTHON;
use super::template::{self, render};
use super::{Lab, NETWORK, SCOPE, Store, Timings, at, http, program, ready, run_folder, single};
use crate::lab::{Host, Service};

const REST: u16 = 8008;

/// A member as Patroni's `GET /cluster` tells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// `leader`, `replica`, `sync_standby`, …
    pub role: String,
    /// `running` on a primary, `streaming` on a replica that follows.
    pub state: String,
    #[serde(default)]
    pub timeline: Option<u64>,
    #[serde(default)]
    pub lag: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Cluster {
    members: Vec<Member>,
}

pub(super) fn start(lab: &Lab, store: Store, timings: &Timings) -> Result<()> {
    let hosts = lab.postgres();
    // The first makes the cluster alone, so that every run has the same primary.
    let first = start_member(lab, hosts[0], store, timings)?;
    ready(&first, Duration::from_secs(60), || match lab.leader()? {
        leader if leader.name() == "pg1" => Ok(()),
        other => bail!("{} leads", other.name()),
    })?;
    // The lab's data is thrown away: no waiting for the disk.
    let fast = r#"{"postgresql":{"parameters":{"fsync":"off","synchronous_commit":"local"}}}"#;
    let answer = http::patch(lab.client(), at(hosts[0], REST), "/config", fast)?;
    if answer.status != 200 {
        bail!("Patroni refused the lab's settings: {} {}", answer.status, answer.body);
    }
    single::create_roles(lab, "pg1")?;
    let others = hosts[1..].iter().map(|host| start_member(lab, host, store, timings)).collect::<Result<Vec<_>>>()?;
    for service in &others {
        let name = service.host().name();
        ready(service, Duration::from_secs(60), || {
            let members = lab.members()?;
            let member = members.iter().find(|member| member.name == name).context("it is no member yet")?;
            if member.state != "streaming" {
                bail!("its state is {}", member.state);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn start_member(lab: &Lab, host: &Host, store: Store, timings: &Timings) -> Result<Service> {
    let config = render(
        &store.patroni(lab, template::PATRONI)?,
        &[
            ("SCOPE", SCOPE),
            ("NAME", host.name()),
            ("ADDRESS", &host.v4().to_string()),
            ("NETWORK", &format!("{NETWORK}/24")),
            ("TTL", &timings.ttl.to_string()),
            ("LOOP_WAIT", &timings.loop_wait.to_string()),
            ("RETRY_TIMEOUT", &timings.retry_timeout.to_string()),
        ],
    )?;
    run_folder(host, "/run/postgresql", "postgres")?;
    host.write_private("/etc/patroni/config.yml", config, "postgres")?;
    let patroni = program("patroni", &["patroni", "/etc/patroni/config.yml"], "postgres");
    host.spawn(patroni.env("PYTHONPATH", PYTHON))
}

impl Lab {
    /// The members, asked of the first that answers.
    pub fn members(&self) -> Result<Vec<Member>> {
        let mut last = anyhow::anyhow!("the lab has no Patroni");
        for host in self.postgres() {
            match http::get(self.client(), at(host, REST), "/cluster") {
                Ok(answer) if answer.status == 200 => {
                    let cluster: Cluster = serde_json::from_str(&answer.body)?;
                    return Ok(cluster.members);
                }
                Ok(answer) => last = anyhow::anyhow!("{} answered {}", host.name(), answer.status),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The member that Patroni calls leader and whose PostgreSQL runs and takes writes.
    pub fn leader(&self) -> Result<&Host> {
        let members = self.members()?;
        let leader = members.iter().find(|member| member.role == "leader").context("the cluster has no leader")?;
        let host = self.net.find(&leader.name).with_context(|| format!("the leader {:?} is no host", leader.name))?;
        if self.superuser_sql(host, "SELECT pg_is_in_recovery()")? != "f" {
            bail!("{} leads and is still in recovery", leader.name);
        }
        Ok(host)
    }

    /// `patronictl` with this cluster's configuration, run on a member whose Patroni lives.
    pub fn patronictl(&self, args: &[&str]) -> Result<String> {
        let alive = |host: &&Host| host.service("patroni").is_ok_and(|service| service.is_running());
        let host = self.postgres().into_iter().find(alive).context("no Patroni runs")?;
        let path = format!("PYTHONPATH={PYTHON}");
        let mut argv = vec!["env", &path, "patronictl", "-c", "/etc/patroni/config.yml"];
        argv.extend(args);
        host.output_as("postgres", argv)
    }

    /// Moves the leadership in good order and waits until the new primary takes writes.
    pub fn switchover(&self, to: &str) -> Result<()> {
        let from = self.leader()?.name().to_owned();
        self.patronictl(&["switchover", SCOPE, "--leader", &from, "--candidate", to, "--force"])?;
        crate::lab::until_ok(&format!("{to} to lead"), Duration::from_secs(30), || match self.leader()? {
            leader if leader.name() == to => Ok(()),
            leader => bail!("{} leads", leader.name()),
        })
    }

    /// The process id of the postmaster on this host.
    pub fn postmaster(&self, host: &Host) -> Result<i32> {
        let path = "/var/lib/postgresql/17/patroni/postmaster.pid";
        let text = host.read(path)?;
        text.lines().next().and_then(|line| line.parse().ok()).with_context(|| format!("{path} holds no pid"))
    }

    /// `kill -9` of the postmaster and, if asked, of the Patroni that would start it again.
    pub fn kill_postgres(&self, host: &Host, patroni_too: bool) -> Result<()> {
        let postmaster = self.postmaster(host)?.to_string();
        if patroni_too {
            host.service("patroni")?.kill(libc::SIGKILL)?;
        }
        host.run(["kill", "-9", &postmaster])
    }
}
