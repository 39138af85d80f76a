//! Patroni's callbacks in place of an agent: `pgsplice callback` for the PgBouncer beside each member of a lab, with the
//! lines that are shipped for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::cluster::ADMIN_PASSWORD;
use xtask::lab::{Host, Lab, until_ok};

const SHIPPED: &str = include_str!("../../deploy/patroni/callbacks.yml");
const PATRONI: &str = "/etc/patroni/config.yml";
const PGBOUNCER: &str = "/etc/pgbouncer/pgbouncer.ini";
const DATABASES: &str = "/etc/pgbouncer/databases.ini";

/// From now on every member's PgBouncer leads to the primary, by Patroni's callbacks alone. It leads nowhere until the first.
pub fn install(lab: &Lab) -> Result<()> {
    let lines = SHIPPED.split_once("postgresql:\n").context("the shipped file has no postgresql:")?.1;
    let lines = lines.replace("/usr/bin/pgsplice", "/opt/pgsplice/pgsplice");
    for host in lab.postgres() {
        host.write_private("/etc/pgsplice/agent.toml", agent(host), "postgres")?;
        host.write_private(DATABASES, "[databases]\n", "postgres")?;
        host.run(["chown", "-R", "postgres:postgres", "/etc/pgbouncer"])?;
        let ini = host.read(PGBOUNCER)?;
        let (_, rest) = ini.split_once("[pgbouncer]").context("pgbouncer.ini has no [pgbouncer]")?;
        host.write(PGBOUNCER, format!("%include {DATABASES}\n[pgbouncer]{rest}"))?;
        lab.bouncer_admin(host, "RELOAD")?;
        let patroni = host.read(PATRONI)?;
        let patroni = patroni.replace("\npostgresql:\n", &format!("\npostgresql:\n{lines}"));
        ensure!(patroni.contains("on_reload"), "patroni.yml has no place for callbacks");
        host.write_private(PATRONI, patroni, "postgres")?;
        host.service("patroni")?.kill(libc::SIGHUP)?;
    }
    Ok(())
}

/// Waits until the PgBouncer on `member` leads to `primary`.
pub fn until_leads(lab: &Lab, member: &str, primary: &str) -> Result<()> {
    let (host, address) = (lab.host(member), lab.host(primary).v4().to_string());
    let log = || host.service("patroni").map(|patroni| patroni.log_tail(30)).unwrap_or_default();
    until_ok(&format!("the PgBouncer of {member} to lead to {primary}"), Duration::from_secs(20), || {
        let databases = lab.bouncer_admin(host, "SHOW DATABASES")?;
        ensure!(databases.contains(&address), "{databases}");
        Ok(())
    })
    .with_context(log)
}

fn agent(host: &Host) -> String {
    format!(
        "name = \"{name}\"\n[pgbouncer]\naddress = \"{address}:6432\"\nconsole = \"/run/pgbouncer/.s.PGSQL.6432\"\n\
         password = \"{ADMIN_PASSWORD}\"\ndatabases_file = \"{DATABASES}\"\n[pgbouncer.databases]\n\"*\" = \"\"\n\
         [cluster.main]\nscope = \"main\"\netcd.endpoints = [\"http://10.0.0.11:2379\"]\n",
        name = host.name(),
        address = host.v4()
    )
}
