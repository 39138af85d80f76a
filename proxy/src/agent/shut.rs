//! Databases that lead to a deposed primary and cannot be brought away, by an agent that ends: it cannot leave them paused,
//! and whatever is written there is lost. They are disabled, and their clients refused, until an agent has brought them away.

use std::collections::BTreeSet;
use std::path::Path;

use super::console::{Console, ConsoleError, quoted};
use super::hold::Hold;
use super::note::{Note, Noted};

pub(super) struct Shut {
    note: Note,
    databases: BTreeSet<String>,
}

impl Shut {
    /// What an agent before this one left, if anything.
    pub(super) fn left_behind(databases_file: &Path) -> Self {
        let note = Note::of(databases_file, "disabled");
        Self { databases: note.read().databases, note }
    }

    /// Refuses everybody from now on, those that wait with the rest. Nothing stays paused, as far as PgBouncer obeys.
    pub(super) async fn shut(&mut self, hold: &Hold, console: &mut Console) -> Result<(), String> {
        self.databases.extend(hold.databases().iter().cloned());
        let mut failed: Vec<String> = Vec::new();
        let noted = Noted { databases: self.databases.clone(), is_deposed: true };
        // The disk may be full. Who finds no note at all has to enable them by hand, which is better than to wait for ever.
        if let Err(error) = self.note.write(&noted)
            && hold.note().become_note(&self.note).is_err()
        {
            failed.push(format!("{error}: databases stay disabled until somebody enables them"));
        }
        for name in hold.databases().iter().map(|name| quoted(name)) {
            // DISABLE is for those that come, KILL for those that are here; and KILL pauses.
            for command in ["DISABLE", "KILL", "RESUME"] {
                if let Err(error) = console.command(&format!("{command} {name}")).await {
                    failed.push(error.to_string());
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// They lead to the right place again.
    pub(super) async fn open(&mut self, console: &mut Console) -> Result<(), String> {
        if self.databases.is_empty() {
            return Ok(());
        }
        for name in self.databases.iter().map(|name| quoted(name)) {
            // Whoever wrote the note may have come to no more than that, and left them paused.
            for command in ["ENABLE", "RESUME"] {
                match console.command(&format!("{command} {name}")).await {
                    // It is gone from PgBouncer, or not paused.
                    Ok(_) | Err(ConsoleError::Refused { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        tracing::info!(databases = ?self.databases, "enabled again");
        self.databases.clear();
        self.note.remove().map_err(|error| error.to_string())
    }
}
