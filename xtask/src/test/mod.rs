//! `cargo xtask test`: every test there is, on real servers, with one line at the end that says how many.
//!
//! Most tests wait most of their time (for elections, time limits, start-ups), so several test programs run at once:
//! [`program`] builds and finds them, [`plan`] says which of them in which order, [`run`] runs them.

mod plan;
mod program;
mod run;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{ebpf, setup};

/// What the command line of `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Take this machine as it is: no packages are looked at
    #[arg(long)]
    no_setup: bool,
    /// And `cargo xtask lint`, in what the tests leave of the processors
    #[arg(long)]
    lint: bool,
}

pub fn run(args: Args) -> Result<()> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the tests make network namespaces and load BPF programs: run them as root");
    }
    let begun = Instant::now();
    let programs = if args.no_setup {
        build()?
    } else {
        // What the lab stands on is mostly fetched and unpacked: the compiler works meanwhile.
        let setup = setup::packages(false)?;
        std::thread::scope(|scope| {
            let parts = scope.spawn(|| setup.parts());
            let built = build();
            parts.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            built
        })?
    };
    let at_once = run::AtOnce::of_this_machine();
    let jobs = plan::jobs(&programs, args.filter.as_deref(), at_once)?;
    println!("tests: {} programs, {} tests at once", jobs.len(), at_once.0);
    let run = run::all(jobs, at_once, args.lint)?;
    println!("\ntests: {:.0} s", begun.elapsed().as_secs_f64());
    run.failures.iter().for_each(|failure| println!("FAILED {failure}"));
    let count = run.count;
    match count.ignored {
        0 => println!("{} passed, {} failed", count.passed, count.failed),
        ignored => println!("{} passed, {} failed, {ignored} skipped", count.passed, count.failed),
    }
    if count.failed > 0 || !run.failures.is_empty() {
        bail!("not everything passed");
    }
    if count.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

fn build() -> Result<Vec<program::Program>> {
    let begun = Instant::now();
    ebpf::ensure()?;
    let programs = program::build()?;
    println!("build: {} test programs in {:.0} s", programs.len(), begun.elapsed().as_secs_f64());
    Ok(programs)
}
