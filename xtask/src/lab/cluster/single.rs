//! One PostgreSQL on host `pg1`, for the tests that ask nothing about a cluster.

use std::time::Duration;

use anyhow::Result;

use super::template::{self, render};
use super::{Lab, NETWORK, program, ready, run_folder};
use crate::lab::Program;

const DATA: &str = "/var/lib/postgresql/17/lab";

pub fn start(lab: &Lab) -> Result<()> {
    let host = lab.host("pg1");
    run_folder(host, "/run/postgresql", "postgres")?;
    let initdb = "/usr/lib/postgresql/17/bin/initdb";
    host.output_as("postgres", [initdb, "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8", "--pgdata", DATA])?;
    let hba =
        format!("local all all peer\nhost all all {NETWORK}/24 scram-sha-256\nhost all all fd77::/64 scram-sha-256\n");
    host.write_private(format!("{DATA}/pg_hba.conf"), hba, "postgres")?;
    let service = host.spawn(server("postgres", DATA, 5432))?;
    ready(&service, Duration::from_secs(30), || lab.superuser_sql(host, "SELECT 1"))?;
    create_roles(lab, "pg1")
}

/// One that serves this data folder. Where a host runs several they share a folder for their sockets.
pub fn server(name: &str, data: &str, port: u16) -> Program {
    let settings = [
        "listen_addresses=*",
        "unix_socket_directories=/run/postgresql",
        "max_connections=200",
        "fsync=off",
        // PostgreSQL's own suite has plans that take longer to compile than to run.
        "jit=off",
    ];
    let port = port.to_string();
    let argv = ["/usr/lib/postgresql/17/bin/postgres", "-D", data, "-p", &port];
    program(name, &[&argv[..], &settings.map(|setting| ["-c", setting]).concat()].concat(), "postgres")
}

/// The roles that every other file names, on the server that takes writes.
pub fn create_roles(lab: &Lab, primary: &str) -> Result<()> {
    let host = lab.host(primary);
    host.write("/etc/postgresql/roles.sql", render(template::ROLES, &[])?)?;
    let psql = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "/etc/postgresql/roles.sql"];
    host.output_as("postgres", psql).map(|_| ())
}
