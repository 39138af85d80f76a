//! What tests change at the lab's PgBouncers, and what they read from their logs.

use anyhow::Result;
use xtask::lab::{Host, Lab};

use crate::Certificate;

const CONFIG: &str = "/etc/pgbouncer/pgbouncer.ini";

/// Adds settings to the `[pgbouncer]` section of every PgBouncer and RELOADs them.
pub fn set(lab: &Lab, settings: &[(&str, &str)]) -> Result<()> {
    for host in lab.bouncers() {
        // The section is the file's last.
        let mut config = host.read(CONFIG)?;
        for (name, value) in settings {
            config.push_str(&format!("{name} = {value}\n"));
        }
        host.write(CONFIG, config)?;
        lab.bouncer_admin(host, "RELOAD")?;
    }
    Ok(())
}

/// TLS for clients that ask for it.
pub fn serve_tls(lab: &Lab, certificate: &Certificate) -> Result<()> {
    for host in lab.bouncers() {
        host.write("/etc/pgbouncer/server.crt", &certificate.certificate)?;
        host.write_private("/etc/pgbouncer/server.key", &certificate.key, "postgres")?;
    }
    let settings = [
        ("client_tls_sslmode", "allow"),
        ("client_tls_cert_file", "/etc/pgbouncer/server.crt"),
        ("client_tls_key_file", "/etc/pgbouncer/server.key"),
    ];
    set(lab, &settings)
}

/// All that a PgBouncer logged so far.
pub fn log(bouncer: &Host) -> Result<String> {
    Ok(std::fs::read_to_string(bouncer.service("pgbouncer")?.log_path())?)
}
