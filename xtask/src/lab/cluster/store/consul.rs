//! Three Consul servers, and an agent beside each Patroni.

use std::time::Duration;

use anyhow::{Result, bail};

use super::super::template::{self, render};
use super::super::{Lab, at, http, ready};
use super::Store;
use crate::lab::{Host, Program, Service};

const CONFIG: &str = "/etc/consul.hcl";

pub fn start(lab: &Lab) -> Result<()> {
    let servers = lab.numbered(Store::Consul.name());
    let addresses: Vec<String> = servers.iter().map(|host| format!("\"{}\"", host.v4())).collect();
    let addresses = addresses.join(", ");
    let mut services = Vec::new();
    for host in &servers {
        services.push(start_one(host, template::CONSUL_SERVER, &addresses)?);
    }
    for service in &services {
        has_leader(lab, service)?;
    }
    for host in lab.postgres() {
        start_one(host, template::CONSUL_AGENT, &addresses)?;
    }
    Ok(())
}

fn start_one(host: &Host, template: &str, servers: &str) -> Result<Service> {
    let address = host.v4().to_string();
    let values = [("NAME", host.name()), ("ADDRESS", &address), ("SERVERS", servers)];
    host.write(CONFIG, render(template, &values)?)?;
    host.spawn(Program::new("consul", ["/opt/stores/bin/consul", "agent", "-config-file", CONFIG]))
}

fn has_leader(lab: &Lab, service: &Service) -> Result<()> {
    ready(service, Duration::from_secs(30), || {
        let answer = http::get(lab.client(), at(service.host(), 8500), "/v1/status/leader")?;
        if answer.status != 200 || !answer.body.contains(':') {
            bail!("it has no leader: {}", answer.body);
        }
        Ok(())
    })
}
