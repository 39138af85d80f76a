//! A PgBouncer held for a switchover: the databases this agent has paused, and the note of them that outlives it.
//!
//! Nothing is paused that is not in the note first: whoever starts next to this PgBouncer resumes what it finds there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::console::{Console, ConsoleError, quoted};
use super::note::{Note, NoteError};

/// Between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is paused. Dropping it resumes nothing.
pub(super) struct Hold {
    note: Note,
    pub since: Instant,
    /// What was paused led to a deposed primary.
    pub is_deposed: bool,
    databases: BTreeSet<String>,
    /// No connection to a server was left, and none is made before it ends.
    pub is_quiet: bool,
    /// PAUSE answers once no transaction is under way.
    under_way: JoinSet<(String, Result<(), ConsoleError>)>,
    /// A PAUSE that did not work.
    failed: Option<String>,
}

// === impl Hold ===

impl Hold {
    /// Nothing paused yet. The note stands beside the databases file, where this agent may write.
    pub(super) fn begin(databases_file: &Path) -> Self {
        Self::of(note_of(databases_file), Instant::now(), BTreeSet::new())
    }

    /// What an agent before this one left paused, and since when.
    pub(super) fn left_behind(databases_file: &Path) -> Option<Self> {
        let note = note_of(databases_file);
        // Before the machine's boot there is no Instant; then it is too old in any case.
        let since = Instant::now().checked_sub(note.age()?)?;
        let databases = note.read();
        Some(Self::of(note, since, databases))
    }

    fn of(note: Note, since: Instant, databases: BTreeSet<String>) -> Self {
        Self { note, since, is_deposed: false, is_quiet: false, databases, under_way: JoinSet::new(), failed: None }
    }

    /// Begins to pause these as well. Each has a console of its own, for PAUSE keeps it until it is done.
    pub(super) fn pause(&mut self, more: Vec<String>, console: impl Fn() -> Console) -> Result<(), NoteError> {
        let new: Vec<_> = more.into_iter().filter(|name| !self.databases.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.databases.extend(new.iter().cloned());
        self.is_quiet = false;
        self.note.write(&self.databases)?;
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
                self.is_quiet = true;
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
        self.forget()
    }

    /// It is over in another way.
    pub(super) fn forget(&mut self) -> Result<(), String> {
        self.under_way.abort_all();
        self.note.remove().map_err(|error| error.to_string())
    }
}

fn note_of(databases_file: &Path) -> Note {
    Note::of(databases_file, "paused")
}
