//! A PgBouncer held for a switchover: the databases this agent has paused, and the note of them that outlives it.
//!
//! Nothing is paused that is not in the note first: whoever starts next to this PgBouncer resumes what it finds there.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use super::console::{Console, ConsoleError};

/// Between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is paused. Dropping it resumes nothing.
pub(super) struct Hold {
    note: PathBuf,
    pub since: Instant,
    /// What was paused led to a deposed primary.
    pub is_deposed: bool,
    databases: BTreeSet<String>,
    /// PAUSE answers once no transaction is under way.
    under_way: JoinSet<(String, Result<(), ConsoleError>)>,
    /// A PAUSE that did not work.
    failed: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub(super) struct NoteError {
    what: &'static str,
    path: String,
    source: io::Error,
}

// === impl Hold ===

impl Hold {
    /// Nothing paused yet. The note stands beside the databases file, where this agent may write.
    pub(super) fn begin(databases_file: &Path) -> Self {
        let (note, since) = (note_of(databases_file), Instant::now());
        let databases = BTreeSet::new();
        Self { note, since, is_deposed: false, databases, under_way: JoinSet::new(), failed: None }
    }

    /// What an agent before this one left paused, and since when.
    pub(super) fn left_behind(databases_file: &Path) -> Option<Self> {
        let note = note_of(databases_file);
        let text = std::fs::read_to_string(&note).ok()?;
        let written = std::fs::metadata(&note).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let age = written.elapsed().unwrap_or(Duration::ZERO);
        let databases = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        // Before the machine's boot there is no Instant; then it is too old in any case.
        let since = Instant::now().checked_sub(age)?;
        Some(Self { note, since, is_deposed: false, databases, under_way: JoinSet::new(), failed: None })
    }

    /// Begins to pause these as well. Each has a console of its own, for PAUSE keeps it until it is done.
    pub(super) fn pause(&mut self, more: Vec<String>, console: impl Fn() -> Console) -> Result<(), NoteError> {
        let new: Vec<_> = more.into_iter().filter(|name| !self.databases.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.databases.extend(new.iter().cloned());
        self.write()?;
        for name in new {
            let mut console = console();
            self.under_way.spawn(async move {
                let done = console.command(&format!("PAUSE {}", quoted(&name))).await.map(drop);
                (name, done)
            });
        }
        Ok(())
    }

    /// Waits until nothing is under way: every PAUSE was answered, and no connection to a server is left. The second
    /// matters for what another agent paused.
    pub(super) async fn quiet(&mut self, console: &mut Console) -> Result<(), String> {
        while let Some(done) = self.under_way.join_next().await {
            match done {
                Ok((name, Err(error))) => self.failed = Some(format!("database {name} was not paused: {error}")),
                Ok((_, Ok(()))) => {}
                Err(_) => self.failed = Some("a PAUSE was given up".into()),
            }
        }
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        loop {
            let servers = console.servers().await.map_err(|error| error.to_string())?;
            if !servers.iter().any(|server| self.databases.contains(&server.database)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) fn databases(&self) -> &BTreeSet<String> {
        &self.databases
    }

    /// Resumes all of it and forgets the note. After an error it is still held, and can be tried again.
    pub(super) async fn resume(&mut self, console: &mut Console) -> Result<(), String> {
        self.under_way.abort_all();
        for name in &self.databases {
            match console.command(&format!("RESUME {}", quoted(name))).await {
                // Not paused, or gone: PgBouncer was restarted, or somebody else resumed it.
                Ok(_) | Err(ConsoleError::Refused { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let running = console.databases().await.map_err(|error| error.to_string())?;
        let is_paused =
            |name: &&String| running.iter().any(|one| one.name == **name && one.halted.as_deref() == Some("paused"));
        if let Some(name) = self.databases.iter().find(is_paused) {
            return Err(format!("database {name} is still paused after RESUME"));
        }
        match std::fs::remove_file(&self.note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", error).to_string()),
            _ => Ok(()),
        }
    }

    fn write(&self) -> Result<(), NoteError> {
        let text: String = self.databases.iter().map(|name| format!("{name}\n")).collect();
        // Its time is when the first was paused: a second write must not make it younger.
        let before = std::fs::metadata(&self.note).and_then(|about| about.modified()).ok();
        let write = || {
            std::fs::write(&self.note, text)?;
            match before {
                Some(time) => std::fs::File::options().write(true).open(&self.note)?.set_modified(time),
                None => Ok(()),
            }
        };
        write().map_err(|error| self.failed("write", error))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> NoteError {
        NoteError { what, path: self.note.display().to_string(), source }
    }
}

fn note_of(databases_file: &Path) -> PathBuf {
    let mut name = databases_file.as_os_str().to_owned();
    name.push(".paused");
    name.into()
}

/// As the console reads names with any characters.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_paused_is_found_again_with_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("databases.ini");
        assert!(Hold::left_behind(&file).is_none());
        let mut hold = Hold::begin(&file);
        hold.databases = ["app".to_owned(), "we ird".to_owned()].into();
        hold.write().unwrap();
        let note = std::fs::File::options().write(true).open(&hold.note).unwrap();
        note.set_modified(SystemTime::now() - Duration::from_secs(5)).unwrap();
        hold.databases.insert("more".into());
        hold.write().unwrap();
        let found = Hold::left_behind(&file).unwrap();
        assert_eq!(found.databases.len(), 3);
        let age = found.since.elapsed();
        assert!(age >= Duration::from_secs(5) && age < Duration::from_secs(60), "{age:?}");
    }

    #[test]
    fn names_are_quoted_for_the_console() {
        assert_eq!(quoted("app"), "\"app\"");
        assert_eq!(quoted("a\"; SHUTDOWN"), "\"a\"\"; SHUTDOWN\"");
    }
}
