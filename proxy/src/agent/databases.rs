//! The ini file with PgBouncer's `[databases]`: what stands in it, how it is replaced, and whether PgBouncer has it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::console::Database;

/// A database of this name is written beside the operator's. RELOAD answers RELOAD even if PgBouncer refused the file,
/// and SHOW DATABASES shows no `*`: the marker's dbname shows which version of the file is loaded.
pub const MARKER: &str = "pgsplice_agent";

/// Where databases point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub leader: String,
    /// None while it is not promoted.
    pub timeline: Option<u32>,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug)]
pub(super) struct DatabasesFile {
    path: PathBuf,
    agent: String,
    entries: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
#[error("pgbouncer.databases_file: cannot {what} {path}: {source}")]
pub(super) struct WriteError {
    what: &'static str,
    path: String,
    source: io::Error,
}

// === impl Target ===

impl Target {
    /// Whether a database that PgBouncer shows leads there.
    pub(super) fn is_where(&self, database: &Database) -> bool {
        database.host == self.host && database.port == self.port.to_string()
    }
}

// === impl DatabasesFile ===

impl DatabasesFile {
    pub(super) fn new(path: &Path, agent: &str, entries: &BTreeMap<String, String>) -> Self {
        Self { path: path.into(), agent: agent.into(), entries: entries.clone() }
    }

    pub(super) fn has(&self, database: &str) -> bool {
        self.entries.contains_key(database)
    }

    /// Whether a database that PgBouncer shows is one of this file's; `*` stands for all that lead where it leads.
    pub(super) fn owns(&self, database: &Database, target: &Target) -> bool {
        let of_star = || target.is_where(database) && self.entries.contains_key("*");
        database.name != MARKER && (self.entries.contains_key(&database.name) || of_star())
    }

    /// Replaces the file if it differs: after a crash there is the old one or the new one, whole.
    pub(super) fn write(&self, target: &Target) -> Result<(), WriteError> {
        // A link stays a link: what it points to is replaced.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let text = self.text(target);
        if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        replace(&path, text.as_bytes())
    }

    fn text(&self, target: &Target) -> String {
        // Not the timeline: the file for the next primary is loaded before it has one.
        let Target { leader, host, port, timeline: _ } = target;
        let mut text = format!(
            "; Written by pgsplice agent {}: changes made here are lost.\n; {leader}\n[databases]\n",
            self.agent
        );
        for (name, options) in &self.entries {
            let line = format!("{name} = host={host} port={port} {options}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let _ = writeln!(text, "{MARKER} = host={host} port={port} dbname={}", self.version(target));
        text
    }

    /// Differs whenever anything in the file does.
    fn version(&self, target: &Target) -> String {
        // DefaultHasher::new has fixed keys: the same file has the same version after a restart of the agent.
        let mut hasher = DefaultHasher::new();
        for (name, options) in &self.entries {
            hasher.write(format!("{name}\n{options}\n").as_bytes());
        }
        let Target { leader, host, port, timeline: _ } = target;
        hasher.write(format!("{leader}\n{host}\n{port}").as_bytes());
        format!("v{:016x}", hasher.finish())
    }

    /// How what PgBouncer has loaded differs from the file for `target`.
    pub(super) fn problem(&self, running: &[Database], target: &Target) -> Option<String> {
        for name in self.entries.keys().map(String::as_str).filter(|name| *name != "*").chain([MARKER]) {
            let Some(database) = running.iter().find(|database| database.name == name) else {
                return Some(format!("database {name} is not there"));
            };
            if !target.is_where(database) {
                let (host, port) = (&database.host, &database.port);
                return Some(format!("database {name} points to {host}:{port}, not {}:{}", target.host, target.port));
            }
        }
        let loaded = running.iter().find(|database| database.name == MARKER)?;
        (loaded.database != self.version(target)).then(|| "an older version of the file is loaded".into())
    }
}

/// Writes beside the file and renames over it, mode and owner kept.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.pgsplice"));
    let fail = |what, path: &Path| {
        let path = path.display().to_string();
        move |source| WriteError { what, path, source }
    };
    let old = std::fs::metadata(path).ok();
    let mode = old.as_ref().map_or(0o640, |old| old.mode() & 0o7777);
    // One left by a crash may have another owner.
    let _ = std::fs::remove_file(&beside);
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
    let mut file = open.map_err(fail("create", &beside))?;
    let filled = fill(&mut file, bytes, old.as_ref());
    filled.map_err(fail("write", &beside))?;
    std::fs::rename(&beside, path).map_err(fail("replace", path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync the folder of", path))
}

fn fill(file: &mut File, bytes: &[u8], old: Option<&std::fs::Metadata>) -> io::Result<()> {
    if let Some(old) = old {
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&*file, Some(old.uid()), Some(old.gid()))?;
        }
        // After the owner, which clears bits; and open(2)'s mode was cut by the umask.
        file.set_permissions(old.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(path: &Path) -> DatabasesFile {
        let entries = [("app", "dbname=app pool_size=20"), ("*", "")];
        let entries = entries.map(|(name, options)| (name.to_string(), options.to_string())).into();
        DatabasesFile::new(path, "pb1", &entries)
    }

    fn target(leader: &str, host: &str) -> Target {
        Target { leader: leader.into(), timeline: Some(1), host: host.into(), port: 5432 }
    }

    fn running(file: &DatabasesFile, target: &Target) -> Vec<Database> {
        let database = |name: &str, database: &str| Database {
            name: name.into(),
            host: target.host.clone(),
            port: target.port.to_string(),
            database: database.into(),
            halted: None,
        };
        vec![database("app", "app"), database(MARKER, &file.version(target)), database("other", "x")]
    }

    #[test]
    fn the_file_points_every_database_to_the_target() {
        let file = file(Path::new("x"));
        let text = file.text(&target("pg1", "10.0.0.1"));
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines[..3],
            ["[databases]", "* = host=10.0.0.1 port=5432", "app = host=10.0.0.1 port=5432 dbname=app pool_size=20"]
        );
        assert!(lines[3].starts_with("pgsplice_agent = host=10.0.0.1 port=5432 dbname=v"));
    }

    #[test]
    fn replacing_keeps_mode_and_link_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real.ini"), folder.path().join("databases.ini"));
        std::fs::write(&real, "[databases]\n").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::fs::write(folder.path().join(".real.ini.pgsplice"), "left by a crash").unwrap();
        let file = file(&link);
        file.write(&target("pg1", "10.0.0.1")).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), file.text(&target("pg1", "10.0.0.1")));
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o604);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let inode = std::fs::metadata(&real).unwrap().ino();
        file.write(&target("pg1", "10.0.0.1")).unwrap();
        assert_eq!(std::fs::metadata(&real).unwrap().ino(), inode, "the same text is not written again");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = file(Path::new("/nowhere/databases.ini")).write(&target("pg1", "h")).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("pgbouncer.databases_file: cannot create /nowhere/.databases.ini"), "{said}");
    }

    #[test]
    fn what_pgbouncer_runs_is_compared_with_the_file() {
        let file = file(Path::new("x"));
        let (old, new) = (target("pg1", "10.0.0.1"), target("pg2", "10.0.0.2"));
        assert_eq!(file.problem(&running(&file, &old), &old), None);
        let problem = file.problem(&running(&file, &old), &new).unwrap();
        assert_eq!(problem, "database app points to 10.0.0.1:5432, not 10.0.0.2:5432");
        assert_eq!(file.problem(&[], &old).unwrap(), "database app is not there");
        let promoted = Target { timeline: Some(2), ..old.clone() };
        assert_eq!(file.problem(&running(&file, &old), &promoted), None);
        let renamed = Target { leader: "pg9".into(), ..old.clone() };
        assert_eq!(file.problem(&running(&file, &old), &renamed).unwrap(), "an older version of the file is loaded");
    }
}
