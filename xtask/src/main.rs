use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, demo, ebpf, failover, lab, lint, setup, test};

/// Every command of the project: what the machine needs, the eBPF build, the lab, the demo, tests and figures.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and the lab need on this machine (Debian, root)
    Setup(setup::Args),
    /// Build the kernel side into the objects that the proxy embeds
    BuildEbpf(ebpf::Args),
    /// A data centre in network namespaces: a store, Patroni, PgBouncer, pgsplice and a client
    Lab(lab::Args),
    /// pgbench through pgsplice on the lab while the primary moves and dies
    Demo(demo::Args),
    /// What clients notice when the primary moves or dies, beside HAProxy with Patroni's template
    Failover(failover::Args),
    /// Unit, property and lab tests
    Test(test::Args),
    /// pgsplice beside HAProxy, Envoy and nginx, interleaved
    Bench(bench::Args),
    #[command(hide = true)]
    BenchServer(bench::load::server::Args),
    #[command(hide = true)]
    BenchClient(bench::load::client::Args),
    /// rustfmt and clippy for the host and the eBPF side
    Lint(lint::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(args) => setup::run(args),
        Command::BuildEbpf(args) => ebpf::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Failover(args) => failover::run(args),
        Command::Test(args) => test::run(args),
        Command::Bench(args) => bench::run(args),
        Command::BenchServer(args) => bench::load::server::run(args),
        Command::BenchClient(args) => bench::load::client::run(args),
        Command::Lint(args) => lint::run(args),
    }
}
