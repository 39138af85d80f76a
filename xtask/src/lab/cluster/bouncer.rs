//! The PgBouncers: the fleet on its own hosts, and one beside each Patroni member.

use std::time::Duration;

use anyhow::Result;

use super::template::{self, render};
use super::{BOUNCER_PORT, Lab, LabSpec, Postgres, program, ready, run_folder};
use crate::lab::{Host, Service};

const CONFIG: &str = "/etc/pgbouncer/pgbouncer.ini";

pub fn start(lab: &Lab, spec: &LabSpec) -> Result<()> {
    let fleet = lab.bouncers();
    let peers: Vec<String> = fleet
        .iter()
        .enumerate()
        .map(|(index, host)| format!("{} = host={} port={BOUNCER_PORT}", index + 1, host.v4()))
        .collect();
    let peers = if spec.peering { peers.join("\n") } else { String::new() };
    let mut services = Vec::new();
    let users = userlist(lab)?;
    for (index, host) in fleet.iter().enumerate() {
        let peer_id = if spec.peering { index + 1 } else { 0 }.to_string();
        let config = render(template::PGBOUNCER, &[("POOL_MODE", spec.pool_mode), ("PEER_ID", &peer_id)])?;
        let primary = lab.host("pg1").v4().to_string();
        host.write("/etc/pgbouncer/databases.ini", render(template::DATABASES, &[("PRIMARY", &primary)])?)?;
        host.write("/etc/pgbouncer/peers.ini", render(template::PEERS, &[("PEERS", &peers)])?)?;
        services.push(start_one(host, &config, &users)?);
    }
    if matches!(spec.postgres, Postgres::Patroni(_)) {
        for host in lab.postgres() {
            let config = render(template::NODE_LOCAL, &[("POOL_MODE", spec.pool_mode)])?;
            services.push(start_one(host, &config, &users)?);
        }
    }
    for service in &services {
        ready(service, Duration::from_secs(20), || lab.sql(service.host(), BOUNCER_PORT, "SELECT 1"))?;
    }
    Ok(())
}

/// With what PostgreSQL keeps of the passwords.
fn userlist(lab: &Lab) -> Result<String> {
    let secret = |role: &str| {
        lab.superuser_sql(lab.host("pg1"), &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"))
    };
    let (app, probe) = (secret("app")?, secret("pgsplice")?);
    render(template::USERLIST, &[("APP_SECRET", &app), ("PROBE_SECRET", &probe)])
}

fn start_one(host: &Host, config: &str, users: &str) -> Result<Service> {
    run_folder(host, "/run/pgbouncer", "postgres")?;
    host.write(CONFIG, config)?;
    host.write_private("/etc/pgbouncer/userlist.txt", users, "postgres")?;
    host.spawn(program("pgbouncer", &["pgbouncer", CONFIG], "postgres"))
}
