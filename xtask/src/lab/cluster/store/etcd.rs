//! Three etcd members on hosts `etcd1` to `etcd3`.

use std::time::Duration;

use anyhow::{Result, bail};

use super::super::template::{self, render};
use super::super::{Lab, at, http, program, ready};

pub fn start(lab: &Lab) -> Result<()> {
    let hosts = lab.numbered("etcd");
    let peers: Vec<String> = hosts.iter().map(|host| format!("{}=http://{}:2380", host.name(), host.v4())).collect();
    let peers = peers.join(",");
    let mut services = Vec::new();
    for host in &hosts {
        let address = host.v4().to_string();
        let mut config = render(template::ETCD, &[("NAME", host.name()), ("ADDRESS", &address), ("PEERS", &peers)])?;
        // The lab's data is thrown away: no waiting for the disk.
        config.push_str("unsafe-no-fsync: true\n");
        host.run(["rm", "-rf", "/var/lib/etcd/default"])?;
        host.write("/etc/etcd/etcd.yml", config)?;
        services.push(host.spawn(program("etcd", &["etcd", "--config-file", "/etc/etcd/etcd.yml"], "etcd"))?);
    }
    for service in &services {
        ready(service, Duration::from_secs(30), || {
            let health = http::get(lab.client(), at(service.host(), 2379), "/health")?;
            if health.status != 200 {
                bail!("its health is {}", health.body);
            }
            Ok(())
        })?;
    }
    Ok(())
}
