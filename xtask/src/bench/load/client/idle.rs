//! Sessions that stand: opens all of them, says so, waits for a line, asks each of them again, says so, and ends when its
//! input does.

use anyhow::{Context, Result};

use super::super::window::STANDS;
use super::super::wire;
use super::Args;
use super::session::Session;

/// What it prints when all sessions have answered once more.
pub const ANSWERED: &str = "answered";

pub fn run(args: &Args) -> Result<()> {
    let mut sessions = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let mut session = Session::open(args, args.before + number).with_context(|| format!("session {number}"))?;
        session.ask(wire::REPLY_LEN).with_context(|| format!("session {number}"))?;
        sessions.push(session);
    }
    println!("{STANDS}");
    let mut lines = std::io::stdin().lines();
    lines.next().transpose().context("stdin")?;
    for (number, session) in sessions.iter_mut().enumerate() {
        session.ask(wire::REPLY_LEN).with_context(|| format!("session {number}, after it was idle"))?;
    }
    println!("{ANSWERED}");
    lines.next().transpose().context("stdin")?;
    sessions.into_iter().try_for_each(Session::close).context("say goodbye")
}
