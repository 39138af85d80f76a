//! Where the time of a switchover goes: what pgsplice and the agents logged around the new primary's first write, in
//! milliseconds from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::attempts::now;
use crate::lab::Lab;

/// Before the first write: the leader key moved then, and the announcement came before it.
const BEFORE_MS: f64 = 3000.0;
const AFTER_MS: f64 = 50.0;
const DAY_MS: f64 = 86_400_000.0;
const LET: &str = "new sessions go to ";
const LET_NOBODY: &str = "new sessions go to nobody";

/// When new sessions of a pool were let through again, in milliseconds after the first write at `open`: what is left
/// until a client's row is its login and PgBouncer's at PostgreSQL.
pub fn let_through(lab: &Lab, open: u64, pool: &str) -> Result<f64> {
    let log = std::fs::read_to_string(lab.proxy().service("pgsplice")?.log_path())?;
    let pool = format!("pool=\"{pool}\"");
    let open_ms = of_day(open)?;
    // The proof may come before the watcher's next try.
    let lines = log.lines().filter_map(line).filter(|(at, said)| *at - open_ms > -100.0 && said.contains(&pool));
    let first = lines.filter(|(_, said)| said.contains(LET) && !said.contains(LET_NOBODY)).map(|(at, _)| at).next();
    Ok(first.context("pgsplice's log does not say where new sessions go")? - open_ms)
}

/// `open` is the first write, `last` when every way through pgsplice led there: ns of CLOCK_MONOTONIC.
pub fn print(lab: &Lab, open: u64, last: u64) -> Result<()> {
    let open_ms = of_day(open)?;
    let last_ms = last.saturating_sub(open) as f64 / 1e6;
    let mut lines = Vec::new();
    let proxy = std::iter::once((lab.proxy(), "pgsplice"));
    for (host, service) in proxy.chain(lab.bouncers().into_iter().map(|host| (host, "agent"))) {
        let log = std::fs::read_to_string(host.service(service)?.log_path())?;
        for (at, said) in log.lines().filter_map(line) {
            let at = at - open_ms;
            // Sessions that ended before are of no interest.
            let from = if said.contains("pgsplice::access") { 0.0 } else { -BEFORE_MS };
            if (from..last_ms + AFTER_MS).contains(&at) {
                lines.push((at, format!("{at:>9.1} {:<8} {said}", host.name())));
            }
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    lines.iter().for_each(|(_, line)| println!("{line}"));
    Ok(())
}

/// A moment of CLOCK_MONOTONIC in milliseconds since midnight.
fn of_day(moment: u64) -> Result<f64> {
    let ago = Duration::from_nanos(now().saturating_sub(moment));
    Ok((SystemTime::now().duration_since(UNIX_EPOCH)? - ago).as_secs_f64() * 1e3 % DAY_MS)
}

/// `2026-11-26T02:00:00.123456Z  INFO …`: milliseconds since midnight, and the rest.
fn line(text: &str) -> Option<(f64, &str)> {
    let (time, said) = text.split_once(' ')?;
    let mut clock = time.split_once('T')?.1.strip_suffix('Z')?.splitn(3, ':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    Some((((hours * 60.0 + minutes) * 60.0 + seconds) * 1e3, said.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_line_of_the_log_has_a_time() {
        assert_eq!(line("2026-11-26T01:02:03.500000Z  INFO a: b c=1"), Some((3_723_500.0, "INFO a: b c=1")));
        assert_eq!(line("thread panicked at x"), None);
    }
}
