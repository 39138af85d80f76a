//! pgsplice itself on the lab of the views: without a store, to members that want to see a certificate; and to a standby
//! cluster.

use std::time::Duration;

use pgsplice_tests::{Certificate, patroni};
use serde_json::Value;
use xtask::lab::cluster::{SCOPE, http};
use xtask::lab::{Host, Lab, until, until_ok};

const SOON: Duration = Duration::from_secs(30);
/// The listeners: to the primary, to the leader of the standby cluster, to the primary that it has not.
const PRIMARY: u16 = 5440;
const STANDBY: u16 = 5441;
const AWAY: u16 = 5442;
/// The standby cluster's only member.
const FAR: &str = "proxy1";

/// Its leader follows the first member, whatever becomes of that one's role.
pub fn start_standby_cluster(lab: &Lab) {
    patroni::start_standby_cluster("away", lab.host(FAR), lab.host("pg1")).unwrap();
}

/// `alive` have a Patroni; the first leads.
pub fn members_with_certificates_and_a_standby_cluster(lab: &Lab, alive: [&Host; 2]) {
    let certificate = Certificate::make(lab.client(), &alive).unwrap();
    for host in alive {
        patroni::require_certificates(host, &certificate).unwrap();
    }
    lab.proxy().write("/etc/pgsplice/ca.crt", &certificate.authority).unwrap();
    lab.proxy().write("/etc/pgsplice/client.crt", &certificate.certificate).unwrap();
    lab.proxy().write_private("/etc/pgsplice/client.key", &certificate.key, "root").unwrap();
    lab.start_pgsplice(&config(alive, true)).unwrap();
    until_ok("an answer on the admin socket", SOON, || lab.pgsplice(&["status"])).unwrap();

    let [leader, next] = alive.map(Host::name);
    until("the leader to be open", SOON, || said(lab, "main")["primary"] == leader).unwrap();
    lab.sql(lab.proxy(), PRIMARY, "CREATE TABLE far (at int)").unwrap();
    lab.patronictl(&["switchover", SCOPE, "--leader", leader, "--candidate", next, "--force"]).unwrap();
    until("the next one to be open", SOON, || said(lab, "main")["primary"] == next).unwrap();
    lab.sql(lab.proxy(), PRIMARY, "INSERT INTO far VALUES (1)").unwrap();

    the_leader_of_a_standby_cluster_is_no_primary_until_it_is_promoted(lab);

    lab.write_pgsplice_config(&config(alive, false)).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
    until("nobody to answer without a certificate", SOON, || said(lab, "main")["store"] == "unreachable").unwrap();
    let why = said(lab, "main")["store_error"].as_str().unwrap().to_owned();
    assert!(why.contains("ertificate"), "{why}");
    assert_eq!(said(lab, "main")["primary"], Value::Null);
}

fn the_leader_of_a_standby_cluster_is_no_primary_until_it_is_promoted(lab: &Lab) {
    let ask = |port: u16, sql: &str| lab.sql(lab.proxy(), port, sql);
    until("its leader to have followed", SOON, || ask(STANDBY, "SELECT at FROM far").is_ok_and(|said| said == "1"))
        .unwrap();
    assert_eq!(ask(STANDBY, "SELECT pg_is_in_recovery()").unwrap(), "t");
    let why = said(lab, "away")["closed_because"].as_str().unwrap().to_owned();
    assert!(why.ends_with("this is a standby cluster, which has no primary"), "{why}");
    let refused = ask(AWAY, "SELECT 1").unwrap_err().to_string();
    assert!(refused.contains("FATAL"), "{refused}");

    let rest = (lab.host(FAR).v4(), 8008).into();
    http::patch(lab.client(), rest, "/config", r#"{"standby_cluster":null}"#).unwrap();
    until("it to be a primary", SOON, || said(lab, "away")["primary"] == FAR).unwrap();
    assert_eq!(ask(AWAY, "SELECT pg_is_in_recovery()").unwrap(), "f");
    until("no standby leader", SOON, || ask(STANDBY, "SELECT 1").is_err()).unwrap();
}

/// What `pgsplice cluster` says of one.
fn said(lab: &Lab, cluster: &str) -> Value {
    let said: Value = serde_json::from_str(&lab.pgsplice(&["cluster", "--json"]).unwrap()).unwrap();
    said["clusters"].as_array().unwrap().iter().find(|one| one["name"] == cluster).unwrap().clone()
}

fn config(members: [&Host; 2], with_certificate: bool) -> String {
    let endpoints = members.map(|host| format!("https://{}:8008", host.v4()));
    let pair = "cert = \"/etc/pgsplice/client.crt\"\nkey = \"/etc/pgsplice/client.key\"";
    let pair = if with_certificate { pair } else { "" };
    let mut text = format!(
        "[cluster.main]\nscope = \"{SCOPE}\"\nrest.endpoints = {endpoints:?}\n\
         [cluster.main.proof.tls]\nca = \"/etc/pgsplice/ca.crt\"\n{pair}\n\
         [cluster.away]\nscope = \"away\"\netcd.endpoints = [\"http://10.0.0.11:2379\"]\n"
    );
    for (pool, port, cluster, role) in [
        ("rw", PRIMARY, "main", "primary"),
        ("standby", STANDBY, "away", "standby-leader"),
        ("away", AWAY, "away", "primary"),
    ] {
        text += &format!(
            "[listener.{pool}]\nbind = \"0.0.0.0:{port}\"\npool = \"{pool}\"\n\
             [pool.{pool}]\ncluster = \"{cluster}\"\nroute = \"node-local\"\naddress = \"conn-url\"\nrole = \"{role}\"\n\
             queue.timeout = \"1s\"\n"
        );
    }
    text
}
