//! Databases that lead to a deposed primary and cannot be brought away, by an agent that ends: it cannot leave them paused,
//! and whatever is written there is lost. They are disabled, and their clients refused, until an agent has brought them away.

use std::collections::BTreeSet;
use std::path::Path;

use super::console::{Console, ConsoleError, quoted};
use super::note::Note;

pub(super) struct Shut {
    note: Note,
    databases: BTreeSet<String>,
}

impl Shut {
    /// What an agent before this one left, if anything.
    pub(super) fn left_behind(databases_file: &Path) -> Self {
        let note = Note::of(databases_file, "disabled");
        Self { databases: note.read(), note }
    }

    /// Refuses everybody from now on, those that wait with the rest. Nothing stays paused.
    pub(super) async fn shut(&mut self, databases: &BTreeSet<String>, console: &mut Console) -> Result<(), String> {
        self.databases.extend(databases.iter().cloned());
        self.note.write(&self.databases).map_err(|error| error.to_string())?;
        for name in databases.iter().map(|name| quoted(name)) {
            // DISABLE is for those that come, KILL for those that are here; and KILL pauses.
            for command in ["DISABLE", "KILL", "RESUME"] {
                console.command(&format!("{command} {name}")).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// They lead to the right place again.
    pub(super) async fn open(&mut self, console: &mut Console) -> Result<(), String> {
        if self.databases.is_empty() {
            return Ok(());
        }
        for name in &self.databases {
            match console.command(&format!("ENABLE {}", quoted(name))).await {
                // It is gone from PgBouncer.
                Ok(_) | Err(ConsoleError::Refused { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        tracing::info!(databases = ?self.databases, "enabled again");
        self.databases.clear();
        self.note.remove().map_err(|error| error.to_string())
    }
}
