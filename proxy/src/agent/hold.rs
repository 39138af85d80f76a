//! A PgBouncer held for a switchover: the databases this agent has paused, and the note of them that outlives it.
//!
//! Nothing is paused that is not in the note first: whoever starts next to this PgBouncer resumes what it finds there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::console::{Console, ConsoleError, quoted};
use super::note::{Note, NoteError, Noted};

/// Between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is paused. Dropping it resumes nothing.
pub(super) struct Hold {
    note: Note,
    pub since: Instant,
    /// What was paused led to a deposed primary.
    pub is_deposed: bool,
    /// As the note has it.
    noted: Noted,
    /// No connection to a server was left, and none is made before it ends.
    pub is_quiet: bool,
    /// PAUSE answers once no transaction is under way.
    under_way: JoinSet<(String, Result<(), ConsoleError>)>,
    /// The databases of those.
    asked: BTreeSet<String>,
    /// A PAUSE that did not work, of the last ones.
    failed: Option<String>,
}

// === impl Hold ===

impl Hold {
    /// Nothing paused yet. The note stands beside the databases file, where this agent may write.
    pub(super) fn begin(databases_file: &Path) -> Self {
        Self::of(note_of(databases_file), Instant::now(), Noted::default())
    }

    /// What an agent before this one left paused, and since when.
    pub(super) fn left_behind(databases_file: &Path) -> Option<Self> {
        let note = note_of(databases_file);
        // Before the machine's boot there is no Instant; then it is too old in any case.
        let since = Instant::now().checked_sub(note.age()?)?;
        let noted = note.read();
        Some(Self::of(note, since, noted))
    }

    fn of(note: Note, since: Instant, noted: Noted) -> Self {
        let is_deposed = noted.is_deposed;
        let (under_way, asked) = (JoinSet::new(), BTreeSet::new());
        Self { note, since, is_deposed, is_quiet: false, noted, under_way, asked, failed: None }
    }

    /// Begins to pause these, which are not paused. Each has a console of its own, for PAUSE keeps it until it is done.
    pub(super) fn pause(&mut self, more: Vec<String>, console: impl Fn() -> Console) -> Result<(), NoteError> {
        let databases = self.noted.databases.iter().chain(&more).cloned().collect();
        let to_note = Noted { databases, is_deposed: self.is_deposed };
        if to_note != self.noted && !to_note.databases.is_empty() {
            match self.note.write(&to_note) {
                Ok(()) => self.noted = to_note,
                // What has to be done about those that are paused does not wait for that.
                Err(error) if to_note.databases == self.noted.databases => {
                    tracing::warn!(%error, "the next start may take the pause for another one");
                }
                Err(error) => return Err(error),
            }
        }
        // What did not work, or was undone by a restart of PgBouncer, is among these again.
        self.failed = None;
        for name in more {
            if !self.asked.insert(name.clone()) {
                continue;
            }
            self.is_quiet = false;
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
                Ok((name, paused)) => {
                    self.asked.remove(&name);
                    if let Err(error) = paused {
                        self.failed = Some(format!("database {name} was not paused: {error}"));
                    }
                }
                Err(_) => {
                    self.asked.clear();
                    self.failed = Some("a PAUSE was given up".into());
                }
            }
        }
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        loop {
            let servers = console.servers().await.map_err(|error| error.to_string())?;
            if !servers.iter().any(|server| self.noted.databases.contains(&server.database)) {
                self.is_quiet = true;
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) fn databases(&self) -> &BTreeSet<String> {
        &self.noted.databases
    }

    /// Resumes all of it and forgets the note. After an error it is still held, and can be tried again.
    pub(super) async fn resume(&mut self, console: &mut Console) -> Result<(), String> {
        self.give_up();
        for name in &self.noted.databases {
            match console.command(&format!("RESUME {}", quoted(name))).await {
                // Not paused, or gone: PgBouncer was restarted, or somebody else resumed it.
                Ok(_) | Err(ConsoleError::Refused { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let running = console.databases().await.map_err(|error| error.to_string())?;
        let is_paused =
            |name: &&String| running.iter().any(|one| one.name == **name && one.halted.as_deref() == Some("paused"));
        if let Some(name) = self.noted.databases.iter().find(is_paused) {
            return Err(format!("database {name} is still paused after RESUME"));
        }
        self.forget()
    }

    /// It is over in another way.
    pub(super) fn forget(&mut self) -> Result<(), String> {
        self.give_up();
        self.note.remove().map_err(|error| error.to_string())
    }

    /// The note, for another to be made of it.
    pub(super) fn note(&self) -> &Note {
        &self.note
    }

    fn give_up(&mut self) {
        self.under_way.abort_all();
        self.asked.clear();
    }
}

fn note_of(databases_file: &Path) -> Note {
    Note::of(databases_file, "paused")
}
