//! What tests change at the lab's PostgreSQL (`pg1`): settings, who may come in how, TLS.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::lab::{Lab, until_ok};

use crate::Certificate;

const HOST: &str = "pg1";

/// `ALTER SYSTEM` and reload; in force when it returns, unless a setting needs a restart.
pub fn set(lab: &Lab, settings: &[(&str, &str)]) -> Result<()> {
    let host = lab.host(HOST);
    for (name, value) in settings {
        lab.superuser_sql(host, &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
    }
    lab.superuser_sql(host, "SELECT pg_reload_conf()")?;
    for (name, value) in settings {
        until_ok(&format!("{name} = {value} to be in force"), Duration::from_secs(10), || {
            let now = lab.superuser_sql(host, &format!("SHOW {name}"))?;
            ensure!(now == *value, "it is {now:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// From now on these roles need no password, wherever they come from in the lab.
pub fn trust(lab: &Lab, roles: &[&str]) -> Result<()> {
    let host = lab.host(HOST);
    let path = lab.superuser_sql(host, "SHOW hba_file")?;
    let mut rules = String::new();
    for role in roles {
        writeln!(rules, "host all {role} all trust")?;
    }
    rules.push_str(&host.output(["cat", &path])?);
    host.write_private(&path, rules, "postgres")?;
    lab.superuser_sql(host, "SELECT pg_reload_conf()")?;
    Ok(())
}

/// TLS for whoever asks for it; direct TLS as well, PostgreSQL 17 needs no setting for that.
pub fn serve_tls(lab: &Lab, certificate: &Certificate) -> Result<()> {
    let host = lab.host(HOST);
    host.write("/etc/postgresql/server.crt", &certificate.certificate)?;
    host.write_private("/etc/postgresql/server.key", &certificate.key, "postgres")?;
    let files = [("ssl_cert_file", "/etc/postgresql/server.crt"), ("ssl_key_file", "/etc/postgresql/server.key")];
    set(lab, &files)?;
    set(lab, &[("ssl", "on")])
}
