//! Switchovers under pgbench: what becomes of its transactions, by who asks for the move and which way they go.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{HAPROXY_PORT, settled};
use crate::demo::probe::Prober;
use crate::lab::Lab;
use crate::lab::cluster::FLEET_PORT;

const CLIENTS: usize = 8;
const SECONDS: u32 = 14;
/// Of undisturbed load before the move.
const BEFORE: Duration = Duration::from_secs(4);

/// What pgbench said at its end.
struct Outcome {
    transactions: String,
    /// Clients that lost their session in the middle of something: pgbench gives them up.
    aborted: usize,
    gap: Duration,
    errors: usize,
}

pub fn table(lab: &Lab) -> Result<()> {
    lab.client().run(["pgbench", "-q", "-i", &lab.conninfo(lab.proxy(), FLEET_PORT)])?;
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE probe (prober text, number bigint)")?;
    println!("\na switchover under pgbench, {CLIENTS} clients, and a client that writes a row every 20 ms");
    println!(
        "{:<44} {:>13} {:>17} {:>12} {:>14}",
        "", "transactions", "clients aborted", "longest gap", "failed writes"
    );
    let by_us = |to: &str| lab.pgsplice(&["switchover", "--to", to]).map(drop);
    let by_patroni = |to: &str| lab.switchover(to);
    row(lab, "pgsplice switchover, through the fleet", FLEET_PORT, by_us)?;
    row(lab, "patronictl switchover, through the fleet", FLEET_PORT, by_patroni)?;
    row(lab, "patronictl switchover, through HAProxy", HAPROXY_PORT, by_patroni)
}

fn row(lab: &Lab, what: &str, port: u16, act: impl Fn(&str) -> Result<()>) -> Result<()> {
    let outcome = one(lab, port, act).with_context(|| what.to_owned())?;
    let Outcome { transactions, aborted, gap, errors } = outcome;
    println!("{what:<44} {transactions:>13} {aborted:>17} {:>10.2} s {errors:>14}", gap.as_secs_f64());
    Ok(())
}

fn one(lab: &Lab, port: u16, act: impl Fn(&str) -> Result<()>) -> Result<Outcome> {
    let (_, to) = settled(lab)?;
    let mut prober = Prober::start(lab, "load", port)?;
    let begun = std::time::Instant::now();
    let load = pgbench(lab, port)?;
    sleep(BEFORE);
    act(&to)?;
    let output = load.wait_with_output()?;
    let ended = std::time::Instant::now();
    prober.stop()?;
    let (gap, errors) = prober.gap(begun + Duration::from_secs(1), ended);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let number = |line: &str| line.rsplit(": ").next().unwrap_or_default().to_owned();
    let transactions = said.lines().find(|line| line.starts_with("number of transactions actually")).map(number);
    let aborted = said.lines().filter(|line| line.contains(" aborted ")).count();
    Ok(Outcome { transactions: transactions.unwrap_or_else(|| "none".into()), aborted, gap, errors })
}

fn pgbench(lab: &Lab, port: u16) -> Result<Child> {
    let (clients, seconds) = (format!("--client={CLIENTS}"), format!("--time={SECONDS}"));
    let conninfo = lab.conninfo(lab.proxy(), port);
    let mut command = lab.client().command(["pgbench", "-n", &clients, "--jobs=2", &seconds, &conninfo]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run pgbench")
}
