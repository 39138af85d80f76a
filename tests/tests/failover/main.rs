//! The whole data centre under a client's eyes: switchovers, deaths, a store that goes and comes back.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod dcs;
mod deaths;
mod paused;
mod planned;
mod sessions;
mod synchronous;

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgsplice_tests::{Psql, Shared};
use serde_json::Value;
use xtask::lab::{Lab, LabSpec, until};

/// For everything that has no time limit of its own in Patroni's settings.
const SOON: Duration = Duration::from_secs(30);
/// The lab's ttl of 20 s, the loop after it, and PostgreSQL's promotion.
const FAILOVER: Duration = Duration::from_secs(60);

const WHERE: &str = "SELECT host(coalesce(inet_server_addr(), '127.0.0.1')), pg_is_in_recovery()";

/// For the tests after which every member lives, one at a time. By name they begin last, so that none is in the way of
/// those that have a lab of their own.
static CALM: Shared<Mutex<Lab>> = Shared::new(|| lab("calm").map(Mutex::new));

fn lab(name: &str) -> anyhow::Result<Lab> {
    Lab::up(&LabSpec::full(format!("{name}{:x}", std::process::id())), |_, _| ())
}

/// [`CALM`], its primary open with the whole fleet and two replicas; and the primary's name.
fn calm() -> (MutexGuard<'static, Lab>, String) {
    let lab = CALM.get().lock();
    let primary = until_whole(&lab);
    (lab, primary)
}

fn until_whole(lab: &Lab) -> String {
    let whole = || {
        let members = lab.members().unwrap_or_default();
        let follow = members.iter().filter(|member| member.state == "streaming").count();
        pool(&status(lab), "rw")["candidates"] == 3 && follow == 2
    };
    until("the fleet and the replicas", SOON, whole).unwrap();
    open_primary(lab).unwrap()
}

fn status(lab: &Lab) -> Value {
    serde_json::from_str(&lab.pgsplice(&["status", "--json"]).unwrap()).unwrap()
}

fn pool<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == name).unwrap()
}

fn open_primary(lab: &Lab) -> Option<String> {
    status(lab)["clusters"][0]["primary"].as_str().map(Into::into)
}

fn wait_open(lab: &Lab, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
    until("the primary to be open", limit, || open_primary(lab).is_some_and(|name| wanted(&name))).unwrap();
    open_primary(lab).unwrap()
}

fn other_than(lab: &Lab, leader: &str) -> String {
    let members = lab.members().unwrap();
    members.iter().find(|member| member.name != leader && member.state == "streaming").unwrap().name.clone()
}
