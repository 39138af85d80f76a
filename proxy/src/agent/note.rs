//! A note beside the databases file of what this agent did to databases in PgBouncer. It is written first and outlives the
//! agent, so that whoever starts next undoes it.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file: databases, a line each; behind them, after an empty line, `deposed` if it is. No file is an empty one.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
}

/// What stands in a note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    pub databases: BTreeSet<String>,
    /// They led to a deposed primary.
    pub is_deposed: bool,
}

/// After the databases. An agent from before there was such a word takes it for a database that is gone.
const DEPOSED: &str = "\ndeposed\n";

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

    pub(super) fn read(&self) -> Noted {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let (names, is_deposed) = text.strip_suffix(DEPOSED).map_or((&*text, false), |names| (names, true));
        let databases = names.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Noted { databases, is_deposed }
    }

    /// How long ago it was begun; None where it does not exist.
    pub(super) fn age(&self) -> Option<Duration> {
        let about = std::fs::metadata(&self.path).ok()?;
        let begun = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(begun.elapsed().unwrap_or(Duration::ZERO))
    }

    /// After an error it is what it was.
    pub(super) fn write(&self, noted: &Noted) -> Result<(), NoteError> {
        let mut text: String = noted.databases.iter().map(|name| format!("{name}\n")).collect();
        text.push_str(if noted.is_deposed { DEPOSED } else { "" });
        // Its time is when it was begun: a second write must not make it younger.
        let before = std::fs::metadata(&self.path).and_then(|about| about.modified()).ok();
        let beside = self.beside();
        let write = || {
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            if let Some(time) = before {
                file.set_modified(time)?;
            }
            std::fs::rename(&beside, &self.path)
        };
        write().map_err(|error| self.failed("write", error))
    }

    /// Has it say that something else was done to the same databases. Needs no room on the disk.
    pub(super) fn become_note(&self, other: &Self) -> Result<(), NoteError> {
        std::fs::rename(&self.path, &other.path).map_err(|error| other.failed("write", error))
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        name.into()
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
        assert!(note.read() == Noted::default() && note.age().is_none());
        note.remove().unwrap();
        let noted = |databases: &[&str], is_deposed| Noted {
            databases: databases.iter().map(|name| (*name).to_owned()).collect(),
            is_deposed,
        };
        note.write(&noted(&["app", "we ird"], false)).unwrap();
        let file = std::fs::File::options().write(true).open(&note.path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(5)).unwrap();
        for more in [noted(&["app", "we ird", "deposed"], false), noted(&["app", "deposed"], true)] {
            note.write(&more).unwrap();
            assert_eq!(note.read(), more);
        }
        // A disk that is full.
        std::fs::create_dir(note.beside()).unwrap();
        note.write(&noted(&["other"], false)).unwrap_err();
        assert_eq!(note.read(), noted(&["app", "deposed"], true), "as it was");
        std::fs::remove_dir(note.beside()).unwrap();
        let age = note.age().unwrap();
        assert!(age >= Duration::from_secs(5) && age < Duration::from_secs(60), "{age:?}");
        note.remove().unwrap();
        assert_eq!(note.age(), None);
        std::fs::write(&note.path, "app\nmore\n").unwrap();
        assert_eq!(note.read(), noted(&["app", "more"], false), "of an agent that knew no more");
    }
}
