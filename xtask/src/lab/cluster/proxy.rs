//! pgsplice itself on host `proxy1`, and its agents beside the PgBouncers.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};

use super::template::{self, PASSWORDS, render};
use super::{BOUNCER_PORT, FLEET_PORT, Lab, LabSpec, NODE_LOCAL_PORT, Postgres, Proxy, REPLICA_PORT, Store, ready};
use crate::lab::{Program, Service};

const CONFIG: &str = "/etc/pgsplice/pgsplice.toml";
const AGENT_CONFIG: &str = "/etc/pgsplice/agent.toml";

pub fn start(lab: &Lab, spec: &LabSpec) -> Result<()> {
    let (config, ports): (String, &[u16]) = match (&spec.proxy, &spec.postgres) {
        (Proxy::None, _) => return Ok(()),
        (Proxy::Config(text), _) => (text.clone(), &[]),
        (Proxy::Default, Postgres::Single) => (static_pool(lab)?, &[FLEET_PORT]),
        (Proxy::Default, Postgres::Patroni(_)) => {
            (cluster_pools(lab, spec.store)?, &[FLEET_PORT, REPLICA_PORT, NODE_LOCAL_PORT])
        }
    };
    let service = lab.start_pgsplice(&config)?;
    for &port in ports {
        ready(&service, Duration::from_secs(20), || lab.sql(lab.proxy(), port, "SELECT 1"))?;
    }
    Ok(())
}

/// Until each has repointed its PgBouncer at the primary.
pub fn start_agents(lab: &Lab, store: Store) -> Result<()> {
    let mut services = Vec::new();
    for (index, host) in lab.bouncers().into_iter().enumerate() {
        let (address, peer_id) = (host.v4().to_string(), (index + 1).to_string());
        let values = [("NAME", host.name()), ("ADDRESS", &*address), ("PEER_ID", &*peer_id)];
        let config = store.pgsplice(lab, &render(template::AGENT, &values)?)?;
        host.write_private(AGENT_CONFIG, config, "root")?;
        let argv = ["/opt/pgsplice/pgsplice", "agent", "--config", AGENT_CONFIG];
        services.push(host.spawn(Program::new("agent", argv))?);
    }
    for service in &services {
        ready(service, Duration::from_secs(20), || match lab.bouncer_admin(service.host(), "SHOW DATABASES")? {
            text if text.contains("pgsplice_agent") => Ok(()),
            _ => bail!("the agent has not written its databases yet"),
        })?;
    }
    Ok(())
}

/// The file that is shipped, as it is but for another store, and the lab's additions.
fn cluster_pools(lab: &Lab, store: Store) -> Result<String> {
    store.pgsplice(lab, &render(&[template::PGSPLICE, include_str!("additions.toml")].concat(), &[])?)
}

/// The PgBouncers of the lab by address; without any, PostgreSQL itself.
fn static_pool(lab: &Lab) -> Result<String> {
    let mut config =
        String::from("[listener.primary]\nbind = [\"0.0.0.0:5432\", \"[::]:5432\"]\npool = \"primary\"\n\n");
    config.push_str("[admin]\nhttp = \"127.0.0.1:9187\"\n");
    for (index, host) in lab.bouncers().iter().enumerate() {
        write!(config, "\n[[pool.primary.backend]]\nname = \"{}\"\n", host.name())?;
        writeln!(config, "address = \"{}:{BOUNCER_PORT}\"\npeer_id = {}", host.v4(), index + 1)?;
    }
    if lab.bouncers().is_empty() {
        writeln!(config, "\n[[pool.primary.backend]]\nname = \"pg1\"\naddress = \"{}:5432\"", lab.host("pg1").v4())?;
    }
    Ok(config)
}

impl Lab {
    /// Writes pgsplice's configuration on `proxy1` and starts it there; for a later change, write and `reload`.
    pub fn start_pgsplice(&self, config: &str) -> Result<Service> {
        self.write_pgsplice_config(config)?;
        let binary = self.proxy().run(["test", "-x", "/opt/pgsplice/pgsplice"]);
        if binary.is_err() {
            bail!("there is no pgsplice in {}: build it first", super::binaries().display());
        }
        self.proxy().run(["install", "-d", "/run/pgsplice"])?;
        self.proxy().spawn(Program::new("pgsplice", ["/opt/pgsplice/pgsplice", "run", "--config", CONFIG]))
    }

    pub fn write_pgsplice_config(&self, config: &str) -> Result<()> {
        self.proxy().write_private(CONFIG, config, "root")
    }

    /// `pgsplice ARGS` on the proxy host.
    pub fn pgsplice(&self, args: &[&str]) -> Result<String> {
        let mut argv = vec!["/opt/pgsplice/pgsplice"];
        argv.extend(args);
        self.proxy().output(argv)
    }

    /// The password that a template's `@NAME@` stands for.
    pub fn password(name: &str) -> Option<&'static str> {
        PASSWORDS.iter().find(|(known, _)| *known == name).map(|(_, password)| *password)
    }
}
