//! Connect, one request or a few, close, over and over: without a pause, at a rate, or a number of times.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::window::{now, sleep_until};
use super::session::Session;
use super::{Args, Outcome, Share};

/// Until the measured time is over.
pub fn work(share: Share) -> Result<Outcome> {
    share.stands();
    let mut outcome = Outcome::default();
    let between = share.args.rate.map(|rate| Duration::from_secs_f64(share.of as f64 / rate).as_nanos() as u64);
    // Threads start one after the other, so that sessions come evenly.
    let mut due = now() + between.unwrap_or(0) * share.number as u64 / share.of as u64;
    let mut turn = share.args.before + share.number;
    while !share.window.is_over(now()) {
        if let Some(between) = between {
            sleep_until(due);
            due += between;
        }
        let began = now();
        session(share.args, turn)?;
        turn += share.of;
        let at = now();
        if share.window.holds(at) {
            outcome.done += 1;
            outcome.latency.record(at - began);
        }
    }
    Ok(outcome)
}

/// `--sessions` of them over `--connections` threads.
pub fn count(args: &Args) -> Result<Outcome> {
    let left = AtomicU64::new(args.sessions.unwrap_or(0));
    let take = || left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok();
    let work = || {
        let mut outcome = Outcome::default();
        while let Some(number) = take() {
            let began = now();
            session(args, args.before + number as usize)?;
            outcome.done += 1;
            outcome.latency.record(now() - began);
        }
        Ok(outcome)
    };
    let mut all = Outcome::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..args.connections).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let outcome: Result<Outcome> = worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?;
            all.merge(&outcome?);
        }
        anyhow::Ok(all)
    })
}

fn session(args: &Args, number: usize) -> Result<()> {
    let mut session = Session::open(args, number)?;
    for &length in &args.reply {
        session.ask(length)?;
    }
    session.close().context("say goodbye")
}
