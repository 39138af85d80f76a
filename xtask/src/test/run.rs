//! Test programs side by side. Each has a loopback of its own, so that no two are after the same port, and writes to a
//! file of its own, which is shown whole when it has ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::program::Program;
use crate::build;

/// How often it is said what still runs.
const NEWS: Duration = Duration::from_secs(60);
/// How often it is looked whose tests are nearly through.
const LOOK: Duration = Duration::from_millis(500);

/// How many tests run at the same time, of however many programs.
#[derive(Clone, Copy)]
pub struct AtOnce(pub usize);

/// A program by a road.
pub struct Job<'p> {
    pub program: &'p Program,
    pub road: &'static str,
    /// Which of its tests, and how many these are.
    pub arguments: Vec<String>,
    pub tests: usize,
    /// How many of them at once.
    pub threads: usize,
    /// How many tests one of them counts for.
    pub weight: usize,
    /// Nothing runs beside it.
    pub alone: bool,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    pub count: Count,
    /// A line for each program that did not end well.
    pub failures: Vec<String>,
}

#[derive(Default, Debug, PartialEq, Eq)]
pub struct Count {
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
}

/// A process that was begun.
struct Running {
    name: String,
    output: PathBuf,
    begun: Instant,
    tests: usize,
    threads: usize,
    weight: usize,
    alone: bool,
}

/// Of the process with this number, from the thread that waits for it.
type Ended = (usize, std::io::Result<ExitStatus>);

impl AtOnce {
    /// `$RUST_TEST_THREADS`, or two for each processor: most of their time they wait.
    pub fn of_this_machine() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let asked = std::env::var("RUST_TEST_THREADS").ok().and_then(|threads| threads.parse().ok());
        Self(asked.unwrap_or(2 * cpus).max(1))
    }
}

/// Runs the jobs in their order, each as soon as there is room for it, and `lint` beside them.
pub fn all(jobs: Vec<Job>, at_once: AtOnce, lint: bool) -> Result<Outcome> {
    let folder = build::target().join("test-output");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (tell, hear) = mpsc::channel::<Ended>();
    let mut waiting: Vec<Job> = jobs;
    let mut running: Vec<Option<Running>> = Vec::new();
    let mut outcome = Outcome::default();
    let mut lint = lint.then(linter).transpose()?;
    let mut told = Instant::now();
    loop {
        let now = || running.iter().flatten();
        let alone = now().any(|one| one.alone);
        let busy: usize = now().map(Running::places).sum();
        let room = at_once.0.saturating_sub(busy);
        let fits = |job: &Job| if job.alone { running.iter().all(Option::is_none) } else { !alone && job.fits(room) };
        // A program that must be alone is not passed by the next, or it would wait for ever.
        let first_alone = waiting.iter().position(|job| job.alone);
        let next = waiting.iter().position(fits).filter(|next| first_alone.is_none_or(|alone| *next <= alone));
        if let Some(next) = next {
            let job = waiting.remove(next);
            let (command, one) = job.prepare(&folder);
            running.push(Some(one.begin(command, running.len(), &tell)?));
            continue;
        }
        // Once those are through that must be alone.
        if first_alone.is_none()
            && !alone
            && let Some(command) = lint.take()
        {
            let one = Running::new("lint", folder.join("lint.txt"));
            running.push(Some(one.begin(command, running.len(), &tell)?));
        }
        if running.iter().flatten().count() == 0 {
            return Ok(outcome);
        }
        match hear.recv_timeout(LOOK) {
            Ok((number, status)) => {
                if let Some(one) = running[number].take() {
                    outcome.add(&one, &status.with_context(|| format!("cannot wait for {}", one.name))?)?;
                }
            }
            Err(RecvTimeoutError::Timeout) if told.elapsed() < NEWS => {}
            Err(RecvTimeoutError::Timeout) => {
                told = Instant::now();
                let at_work = |one: &Running| format!("{} ({:.0} s)", one.name, one.begun.elapsed().as_secs_f64());
                let names: Vec<String> = running.iter().flatten().map(at_work).collect();
                println!("== at work: {}; what they say so far is in {}", names.join(", "), folder.display());
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is here"),
        }
    }
}

impl Job<'_> {
    /// A program whose tests are many begins where half of them have room: its others follow those before it.
    fn fits(&self, room: usize) -> bool {
        (self.threads * self.weight).div_ceil(2) <= room
    }

    fn prepare(&self, folder: &std::path::Path) -> (Command, Running) {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        command.arg(&self.program.path).args(&self.arguments).current_dir(&self.program.folder);
        command.env("CARGO_MANIFEST_DIR", &self.program.folder);
        command.env("RUST_TEST_THREADS", self.threads.to_string()).env("PGSPLICE_TEST_ROAD", self.road);
        let name = match self.road {
            "relay" => self.program.name.clone(),
            road => format!("{} by {road}", self.program.name),
        };
        let output = folder.join(format!("{}.txt", name.replace(['/', ' '], "-")));
        let Self { tests, threads, weight, alone, .. } = *self;
        (command, Running { tests, threads, weight, alone, ..Running::new(&name, output) })
    }
}

impl Running {
    fn new(name: &str, output: PathBuf) -> Self {
        Self { name: name.to_owned(), output, begun: Instant::now(), tests: 0, threads: 0, weight: 0, alone: false }
    }

    /// How many tests it counts for now: the last of a program leave room for the next one's.
    fn places(&self) -> usize {
        let said = fs::read(&self.output).unwrap_or_default();
        self.threads.min(self.tests.saturating_sub(ended(&String::from_utf8_lossy(&said)))) * self.weight
    }

    fn begin(self, mut command: Command, number: usize, tell: &mpsc::Sender<Ended>) -> Result<Self> {
        let output = File::create(&self.output).with_context(|| format!("cannot write {}", self.output.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // SAFETY: one system call, allowed between fork and exec.
        unsafe { command.pre_exec(end_with_parent) };
        let mut child: Child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let tell = tell.clone();
        std::thread::spawn(move || drop(tell.send((number, child.wait()))));
        Ok(self)
    }
}

/// How many tests a program has told the end of.
fn ended(said: &str) -> usize {
    let ends = [" ... ok", " ... FAILED", " ... ignored"];
    said.lines().filter(|line| line.starts_with("test ") && ends.iter().any(|end| line.contains(end))).count()
}

/// Ctrl-C reaches every process of the terminal; a signal to xtask alone ends what it has begun, too. Labs go with the
/// programs that made them.
fn end_with_parent() -> std::io::Result<()> {
    // SAFETY: a system call that takes numbers only.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// `cargo xtask lint`, to which the scheduler gives only what nobody else wants: no test is slower for it.
fn linter() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find xtask itself")?);
    command.arg("lint").current_dir(build::workspace());
    let idle = || {
        let param = libc::sched_param { sched_priority: 0 };
        // SAFETY: a system call that reads the structure during the call.
        match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call, allowed between fork and exec.
    unsafe { command.pre_exec(idle) };
    Ok(command)
}

impl Outcome {
    /// Shows what it said, counts, and keeps what failed.
    fn add(&mut self, one: &Running, status: &ExitStatus) -> Result<()> {
        let said = fs::read(&one.output).with_context(|| format!("cannot read {}", one.output.display()))?;
        let said = String::from_utf8_lossy(&said);
        println!("\n== {} took {:.1} s\n{}", one.name, one.begun.elapsed().as_secs_f64(), said.trim());
        said.lines().filter_map(|line| line.strip_prefix("test result: ")).for_each(|line| self.count.add(line));
        if !status.success() {
            let failed = said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
            let failed: Vec<&str> = failed.collect();
            self.failures.push(format!(
                "{}: {}",
                one.name,
                if failed.is_empty() { status.to_string() } else { failed.join(", ") }
            ));
        }
        Ok(())
    }
}

impl Count {
    /// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s`
    fn add(&mut self, result: &str) {
        let number = |name: &str| {
            let part = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(name))?;
            part.trim().parse::<u32>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
        self.ignored += number("ignored").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_ended_when_its_result_is_told() {
        let said = "running 3 tests\ntest a ... ok\ntest b has been running for over 60 seconds\ntest b ... FAILED\n\
            test c ... ignored, started by another test\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored;";
        assert_eq!(ended(said), 3);
        assert_eq!(ended("running 1 test\n"), 0);
    }

    #[test]
    fn results_are_added_up() {
        let mut count = Count::default();
        count.add("ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        count.add("FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 10.00s");
        assert_eq!(count, Count { passed: 14, failed: 3, ignored: 1 });
    }
}
