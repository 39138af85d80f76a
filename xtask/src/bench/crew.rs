//! The load processes of a measurement: several, so that one that waits for its turn does not hold up the load, on the
//! client host, told together when to count.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::load::client::Outcome;
use super::load::cpu::{Reading, Spent};
use super::load::window::{self, STANDS, Window};
use super::testbed::XTASK;
use super::workload::{Path, Time};

/// Load processes of a workload with at least as many connections.
pub const PROCESSES: usize = 2;

/// One load process. It is told by lines on its standard input and answers by lines.
pub struct Process {
    /// None once its end has been waited for.
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("stdout of the load generator")?).lines();
        Ok(Self { child: Some(child), stdin, lines })
    }

    /// Our own load generator with this pattern, for `connections` that come behind `before` others.
    pub fn generator(path: Path<'_>, pattern: &str, connections: usize, before: usize, more: &[&str]) -> Result<Self> {
        let mut argv = vec![XTASK.to_owned(), "bench-client".to_owned()];
        argv.extend(["--pattern".to_owned(), pattern.to_owned()]);
        argv.extend(["--connections".to_owned(), connections.to_string()]);
        argv.extend(["--before".to_owned(), before.to_string()]);
        for target in path.targets() {
            argv.extend(["--target".to_owned(), target.to_string()]);
        }
        argv.extend(more.iter().map(|word| (*word).to_owned()));
        Self::start(path.testbed.client().command(argv))
    }

    /// Waits for a line of this text.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        match self.lines.next().transpose()? {
            Some(line) if line == text => Ok(()),
            line => Err(self.failed(line.as_deref().unwrap_or("ended"))),
        }
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        let said = self.stdin.as_mut().context("its input has ended")?.write_all(line.as_bytes());
        said.map_err(|error| self.failed(&error.to_string()))
    }

    /// Ends its input, waits for its end and gives its last lines.
    pub fn finish(mut self) -> Result<String> {
        drop(self.stdin.take());
        let said = self.lines.by_ref().collect::<Result<Vec<_>, _>>()?.join("\n");
        let output = self.child.take().context("it has ended before")?.wait_with_output()?;
        ensure!(output.status.success(), "the load generator: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(said)
    }

    pub fn outcome(self) -> Result<Outcome> {
        serde_json::from_str(&self.finish()?).context("the load generator's result")
    }

    /// Why it does not do what it should, in its own words.
    fn failed(&mut self, said: &str) -> anyhow::Error {
        let mut words = String::new();
        if let Some(mut child) = self.child.take() {
            // It has ended, or will not do what it was started for.
            let _ = child.kill();
            if let Ok(output) = child.wait_with_output() {
                words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            }
        }
        anyhow::anyhow!("the load generator: {said} {words}")
    }
}

/// An error on the way must not leave a process behind that still loads the machine.
impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Load processes that stand.
pub struct Crew(Vec<Process>);

impl Crew {
    /// Waits until all of them stand.
    pub fn new(processes: Vec<Process>) -> Result<Self> {
        let mut crew = Self(processes);
        crew.0.iter_mut().try_for_each(|process| process.expect(STANDS))?;
        Ok(crew)
    }

    /// `connections` of our own load generator, spread over [`PROCESSES`].
    pub fn spread(path: Path<'_>, pattern: &str, connections: usize, more: &[&str]) -> Result<Self> {
        let processes = shares(connections)
            .into_iter()
            .map(|(before, share)| Process::generator(path, pattern, share, before, more))
            .collect::<Result<_>>()?;
        Self::new(processes)
    }

    /// Has them count for the measured time, after the warm-up. What each did is in their order.
    pub fn count(mut self, path: Path<'_>, time: Time) -> Result<(Vec<Outcome>, Spent)> {
        let from = window::now() + window::nanos(time.warmup);
        let to = from + window::nanos(time.measured);
        self.tell(from, to)?;
        let spent = between(path, from, to);
        let outcomes = self.outcomes();
        // A load that failed explains everything else.
        Ok((outcomes?, spent?))
    }

    /// When to count, in the nanoseconds of [`window::now`].
    pub fn tell(&mut self, from: u64, to: u64) -> Result<()> {
        self.0.iter_mut().try_for_each(|process| process.say(&Window::line(from, to)))
    }

    /// Waits for their ends; what each did is in their order.
    pub fn outcomes(self) -> Result<Vec<Outcome>> {
        self.0.into_iter().map(Process::outcome).collect()
    }
}

/// What the CPUs did between two moments; waits for them. Sessions that stand are counted by their road just before.
pub fn between(path: Path<'_>, from: u64, to: u64) -> Result<Spent> {
    const SCRAPE: u64 = 100_000_000;
    window::sleep_until(from.saturating_sub(SCRAPE));
    path.contender.look()?;
    window::sleep_until(from);
    let before = Reading::now()?;
    window::sleep_until(to);
    Ok(before.until(&Reading::now()?).during((to - from) as f64 / 1e9))
}

/// How many connections each load process has, and how many the others before it have.
pub fn shares(connections: usize) -> Vec<(usize, usize)> {
    let processes = PROCESSES.min(connections).max(1);
    let first = |number: usize| number * connections / processes;
    (0..processes).map(|number| (first(number), first(number + 1) - first(number))).collect()
}

/// All of them together.
pub fn together(outcomes: &[Outcome]) -> Outcome {
    let mut all = Outcome::default();
    outcomes.iter().for_each(|outcome| all.merge(outcome));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_and_numbered_without_gaps() {
        assert_eq!(shares(16), [(0, 8), (8, 8)]);
        assert_eq!(shares(17), [(0, 8), (8, 9)]);
        assert_eq!(shares(1), [(0, 1)]);
    }
}
