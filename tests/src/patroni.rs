//! What tests change at the lab's Patronis, in the files that the lab wrote for them.

use anyhow::{Result, ensure};
use xtask::lab::{Host, Program};

use crate::Certificate;

const CONFIG: &str = "/etc/patroni/config.yml";

/// From now on this member's REST API shows the certificate, and wants one of the same authority from everybody.
pub fn require_certificates(host: &Host, certificate: &Certificate) -> Result<()> {
    host.write("/etc/patroni/ca.crt", &certificate.authority)?;
    host.write("/etc/patroni/server.crt", &certificate.certificate)?;
    host.write_private("/etc/patroni/server.key", &certificate.key, "postgres")?;
    let pair = "  certfile: /etc/patroni/server.crt\n  keyfile: /etc/patroni/server.key\n";
    let config = host.read(CONFIG)?;
    let restapi = format!("restapi:\n{pair}  cafile: /etc/patroni/ca.crt\n  verify_client: required\n");
    let config = config.replace("restapi:\n", &restapi);
    ensure!(config.contains("verify_client"), "patroni.yml has no section restapi");
    // What members ask each other with, and patronictl them.
    let ctl = format!("\nctl:\n{pair}  cacert: /etc/patroni/ca.crt\n");
    host.write_private(CONFIG, config + &ctl, "postgres")?;
    host.service("patroni")?.kill(libc::SIGHUP)
}

/// A standby cluster of one member, `on`, which copies the PostgreSQL of the member `from` and follows it; in the same etcd.
/// Does not wait for it.
pub fn start_standby_cluster(scope: &str, on: &Host, from: &Host) -> Result<()> {
    let follow = format!("  dcs:\n    standby_cluster:\n      host: {}\n      port: 5432\n", from.v4());
    let config = from.read(CONFIG)?;
    let config = config
        .replace("scope: main\n", &format!("scope: {scope}\n"))
        .replace(&format!("name: {}\n", from.name()), &format!("name: {}\n", on.name()))
        .replace(&from.v4().to_string(), &on.v4().to_string())
        .replace("  dcs:\n", &follow);
    ensure!(config.contains(&format!("scope: {scope}\n")) && config.contains("standby_cluster"), "{config}");
    on.run(["install", "-d", "-o", "postgres", "/run/postgresql"])?;
    on.write_private(CONFIG, config, "postgres")?;
    on.spawn(Program::new("patroni", ["patroni", CONFIG]).user("postgres")).map(drop)
}
