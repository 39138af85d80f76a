//! A note beside the databases file of what this agent did to databases in PgBouncer. It is written first and outlives the
//! agent, so that whoever starts next undoes it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A list of databases in a file, a line each; no file is an empty one.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub(super) struct NoteError {
    what: &'static str,
    path: String,
    source: io::Error,
}

impl Note {
    /// `what` was done.
    pub(super) fn of(databases_file: &Path, what: &str) -> Self {
        let mut name = databases_file.as_os_str().to_owned();
        name.push(".");
        name.push(what);
        Self { path: name.into() }
    }

    pub(super) fn read(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// How long ago it was begun; None where it does not exist.
    pub(super) fn age(&self) -> Option<Duration> {
        let about = std::fs::metadata(&self.path).ok()?;
        let begun = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(begun.elapsed().unwrap_or(Duration::ZERO))
    }

    pub(super) fn write(&self, databases: &BTreeSet<String>) -> Result<(), NoteError> {
        let text: String = databases.iter().map(|name| format!("{name}\n")).collect();
        // Its time is when it was begun: a second write must not make it younger.
        let before = std::fs::metadata(&self.path).and_then(|about| about.modified()).ok();
        let write = || {
            std::fs::write(&self.path, text)?;
            match before {
                Some(time) => std::fs::File::options().write(true).open(&self.path)?.set_modified(time),
                None => Ok(()),
            }
        };
        write().map_err(|error| self.failed("write", error))
    }

    pub(super) fn remove(&self) -> Result<(), NoteError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> NoteError {
        NoteError { what, path: self.path.display().to_string(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_again_with_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let note = Note::of(&folder.path().join("databases.ini"), "paused");
        assert!(note.read().is_empty() && note.age().is_none());
        note.remove().unwrap();
        note.write(&["app".to_owned(), "we ird".to_owned()].into()).unwrap();
        let file = std::fs::File::options().write(true).open(&note.path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(5)).unwrap();
        note.write(&["app".to_owned(), "we ird".to_owned(), "more".to_owned()].into()).unwrap();
        assert_eq!(note.read().len(), 3);
        let age = note.age().unwrap();
        assert!(age >= Duration::from_secs(5) && age < Duration::from_secs(60), "{age:?}");
        note.remove().unwrap();
        assert_eq!(note.age(), None);
    }
}
