//! Names that many sessions share, of listeners, pools and roads: a number in each session, the text once.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU16;
use std::ops::Deref;
use std::sync::LazyLock;

use parking_lot::RwLock;

/// A name, by its number in a table of the process. Names come from the configuration, so they are few, and their
/// texts are never freed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name(NonZeroU16);

#[derive(Default)]
struct Table {
    numbers: HashMap<&'static str, Name>,
    /// The text of number 1 first.
    texts: Vec<&'static str>,
}

static TABLE: LazyLock<RwLock<Table>> = LazyLock::new(RwLock::default);

/// What the names are called that a table of 65,534 has no room for.
const NO_ROOM: &str = "(too many names)";

impl Name {
    pub fn of(text: &str) -> Self {
        // A statement of its own: the guard must be gone before the table is locked again.
        let known = TABLE.read().numbers.get(text).copied();
        known.unwrap_or_else(|| TABLE.write().add(text))
    }

    pub fn as_str(self) -> &'static str {
        TABLE.read().texts[usize::from(self.0.get()) - 1]
    }
}

impl Table {
    fn add(&mut self, text: &str) -> Name {
        if let Some(known) = self.numbers.get(text) {
            return *known;
        }
        let last = self.texts.len() + 1 >= usize::from(u16::MAX);
        if last && let Some(known) = self.numbers.get(NO_ROOM) {
            return *known;
        }
        let text: &'static str = if last { NO_ROOM } else { Box::leak(text.into()) };
        self.texts.push(text);
        let number = u16::try_from(self.texts.len()).ok().and_then(NonZeroU16::new);
        let name = Name(number.expect("nothing is added behind NO_ROOM, which comes before the numbers end"));
        self.numbers.insert(text, name);
        name
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_name() {
        let (rw, ro) = (Name::of("rw"), Name::of("ro"));
        assert_eq!((rw, rw.as_str(), ro.as_str()), (Name::of("rw"), "rw", "ro"));
        assert_ne!(rw, ro);
        assert_eq!(format!("{rw} {ro:?}"), "rw \"ro\"");
        assert_eq!(size_of::<Option<Name>>(), 2);
    }

    #[test]
    fn a_full_table_still_answers() {
        let mut table = Table::default();
        let names: Vec<Name> = (0..70_000).map(|number: u32| table.add(&number.to_string())).collect();
        assert_eq!(table.texts.len(), usize::from(u16::MAX));
        assert_eq!(names[65_533], table.add("65533"));
        assert_ne!(names[65_533], names[65_534]);
        assert_eq!((names[69_999], table.texts[65_534]), (table.add("one more"), NO_ROOM));
    }
}
