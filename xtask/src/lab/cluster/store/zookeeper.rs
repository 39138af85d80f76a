//! Three ZooKeeper servers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};

use super::super::template::{self, render};
use super::super::{Lab, at, ready};
use super::Store;
use crate::lab::{Host, Program};

const CONFIG: &str = "/etc/zookeeper/zoo.cfg";
const JAVA: [&str; 6] = [
    "java",
    "-XX:+UseSerialGC",
    "-Xmx128m",
    "-cp",
    "/opt/stores/java/*",
    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
];

pub fn start(lab: &Lab) -> Result<()> {
    let hosts = lab.numbered(Store::Zookeeper.name());
    let line = |(index, host): (usize, &&Host)| format!("server.{}={}:2888:3888", index + 1, host.v4());
    let servers = hosts.iter().enumerate().map(line).collect::<Vec<_>>().join("\n");
    let config = render(template::ZOOKEEPER, &[("SERVERS", &servers)])?;
    let mut services = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        host.write(CONFIG, &config)?;
        host.write("/var/lib/zookeeper/myid", format!("{}\n", index + 1))?;
        services.push(host.spawn(Program::new("zookeeper", JAVA.into_iter().chain([CONFIG])))?);
    }
    for service in &services {
        let server = at(service.host(), 2181);
        ready(service, Duration::from_secs(60), || {
            let said = lab.client().on_thread(|| -> std::io::Result<String> {
                let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(b"srvr")?;
                let mut said = String::new();
                stream.read_to_string(&mut said)?;
                Ok(said)
            })??;
            if !said.contains("Mode: ") {
                bail!("it does not serve: {said}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
