//! Reading one section: typed keys out of a TOML table that knows its lines, with everything unknown remembered.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::Report;
use super::values::{self, Kind};

/// What reading gathers over all sections.
pub(super) struct Reader {
    pub report: Report,
    /// Every key the readers asked for, with NAME for the names people give: `pool.NAME.queue.size`.
    pub known: BTreeSet<String>,
    unknown: Vec<Unknown>,
}

struct Unknown {
    line: usize,
    /// `pool.rw.queue`; empty at the top.
    path: String,
    /// `pool.NAME.queue`.
    schema: String,
    key: String,
    is_table: bool,
}

/// One table of the file, or the absence of one: its keys are then all at their defaults.
pub(super) struct Section<'r, 't> {
    pub reader: &'r mut Reader,
    table: Option<&'t DeTable<'t>>,
    pub path: String,
    schema: String,
    asked: BTreeSet<&'static str>,
}

impl Reader {
    pub fn new(report: Report) -> Self {
        Self { report, known: BTreeSet::new(), unknown: Vec::new() }
    }

    pub fn top<'r, 't>(&'r mut self, table: &'t DeTable<'t>) -> Section<'r, 't> {
        Section { reader: self, table: Some(table), path: String::new(), schema: String::new(), asked: BTreeSet::new() }
    }

    /// Blames the keys nobody asked for, now that all the known ones are known.
    pub fn blame_unknown(&mut self) {
        for Unknown { line, path, schema, key, is_table } in std::mem::take(&mut self.unknown) {
            let siblings: Vec<&str> = self.known.iter().filter_map(|known| child_of(known, &schema)).collect();
            let elsewhere = self
                .known
                .iter()
                .filter_map(|known| known.rsplit_once('.').filter(|(_, last)| *last == key))
                // The nearest: within this section, or the one that shares most of its path.
                .max_by_key(|(section, _)| section.bytes().zip(schema.bytes()).take_while(|(a, b)| a == b).count());
            let what = if is_table { "section" } else { "key" };
            let problem = match (values::closest(&key, siblings.iter().copied()), elsewhere) {
                (Some(meant), _) => format!("unknown {what} (did you mean {meant:?}?)"),
                (None, Some((section, _))) => format!("unknown {what} here (it belongs in [{section}])"),
                (None, None) => format!("unknown {what}"),
            };
            let expected = match siblings.as_slice() {
                [] => "no such key".into(),
                [only] => only.to_string(),
                several => format!("one of {}", several.join(", ")),
            };
            self.report.error_at(line, &join(&path, &shown_key(&key)), problem, expected);
        }
    }
}

impl<'t> Section<'_, 't> {
    /// The value, if the key is there and right. A wrong one is blamed.
    pub fn get<T>(&mut self, key: &'static str, kind: Kind<'_, T>) -> Option<T> {
        let value = self.value(key)?;
        let path = join(&self.path, key);
        match kind.read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.reader.report.error(&path, problem, kind.expected);
                None
            }
        }
    }

    /// Overwrites the default in `target` if the key is there and right.
    pub fn set<T>(&mut self, key: &'static str, kind: Kind<'_, T>, target: &mut T) {
        if let Some(value) = self.get(key, kind) {
            *target = value;
        }
    }

    /// Like [`Self::get`]; an absent key is blamed too.
    pub fn require<T>(&mut self, key: &'static str, kind: Kind<'_, T>) -> Option<T> {
        if !self.has(key) {
            self.note(key);
            let path = join(&self.path, key);
            self.reader.report.error(&path, "missing", kind.expected);
            return None;
        }
        self.get(key, kind)
    }

    /// A list, or one value in place of a list of one. Each wrong element is blamed at its own line.
    pub fn list<T>(&mut self, key: &'static str, kind: Kind<'_, T>) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let path = join(&self.path, key);
        let DeValue::Array(elements) = value.get_ref() else {
            return self.get(key, kind).map(|one| vec![one]);
        };
        let mut list = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.reader.place(&path, element);
            match kind.read(element.get_ref()) {
                Ok(value) => list.push(value),
                Err(problem) => self.reader.report.error(&path, problem, kind.expected.as_str()),
            }
        }
        Some(list)
    }

    /// Whether the file has this key.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    /// Whether the file has this section at all.
    pub fn exists(&self) -> bool {
        self.table.is_some()
    }

    /// A section within this one, there or not.
    pub fn section(&mut self, key: &'static str) -> Section<'_, 't> {
        self.note(key);
        let (path, schema) = (join(&self.path, key), join(&self.schema, key));
        let value = self.table.and_then(|table| table.get(key));
        self.reader.open(value, path, schema)
    }

    /// The sections people name: `[pool.NAME]`, by name. Without any, one absent section keeps the schema known.
    pub fn named_sections(&mut self, key: &'static str, mut each: impl FnMut(&str, Section<'_, 't>)) {
        self.note(key);
        let (path, schema) = (join(&self.path, key), join(&join(&self.schema, key), "NAME"));
        let Some(value) = self.table.and_then(|table| table.get(key)) else {
            return;
        };
        self.reader.place(&path, value);
        let DeValue::Table(table) = value.get_ref() else {
            self.reader.report.error(
                &path,
                values::describe(value.get_ref()),
                format!("sections such as [{path}.NAME]"),
            );
            return;
        };
        for (name, value) in table.iter() {
            let path = join(&path, &shown_key(name.get_ref()));
            self.reader.place(&path, value);
            if !is_name(name.get_ref()) {
                let expected = NAME;
                self.reader.report.error(&path, format!("{:?} is not a name", name.get_ref()), expected);
                continue;
            }
            let section = self.reader.open(Some(value), path, schema.clone());
            if section.exists() {
                each(name.get_ref(), section);
            }
        }
    }

    /// `[[pool.NAME.backend]]`. Whether the key is there.
    pub fn array_of_sections(&mut self, key: &'static str, mut each: impl FnMut(usize, Section<'_, 't>)) -> bool {
        self.note(key);
        let (path, schema) = (join(&self.path, key), join(&self.schema, key));
        let Some(value) = self.table.and_then(|table| table.get(key)) else {
            return false;
        };
        self.reader.place(&path, value);
        match value.get_ref() {
            DeValue::Array(elements) if elements.is_empty() => {
                self.reader.report.error(&path, "the list is empty", format!("at least one [[{path}]] section"));
            }
            DeValue::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let section = self.reader.open(Some(element), format!("{path}[{index}]"), schema.clone());
                    if section.exists() {
                        each(index, section);
                    }
                }
            }
            other => self.reader.report.error(&path, values::describe(other), format!("[[{path}]] sections")),
        }
        true
    }

    /// A table of free keys with text, number or boolean values, as text.
    pub fn tags(&mut self, key: &'static str) -> Option<Vec<(String, String)>> {
        self.texts(key, "a table of tags such as { region = \"eu\" }")
    }

    /// The same for any other table of free keys.
    pub fn texts(&mut self, key: &'static str, expected: &str) -> Option<Vec<(String, String)>> {
        let value = self.value(key)?;
        let path = join(&self.path, key);
        let DeValue::Table(table) = value.get_ref() else {
            self.reader.report.error(&path, values::describe(value.get_ref()), expected);
            return None;
        };
        let mut tags = Vec::new();
        for (tag, value) in table.iter() {
            let path = join(&path, &shown_key(tag.get_ref()));
            self.reader.place(&path, value);
            // Patroni's tags are YAML: numbers and booleans are written without quotes there.
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(flag) => flag.to_string(),
                DeValue::Integer(number) => number.to_string(),
                other => {
                    let expected = "text, a whole number, true or false";
                    self.reader.report.error(&path, values::describe(other), expected);
                    continue;
                }
            };
            tags.push((tag.get_ref().to_string(), text));
        }
        Some(tags)
    }

    /// The section is read: what is left in it nobody knows.
    pub fn end(self) {
        for (key, value) in self.table.into_iter().flat_map(|table| table.iter()) {
            if !self.asked.contains(key.get_ref().as_ref()) {
                self.reader.unknown.push(Unknown {
                    line: self.reader.report.line_at(key.span().start),
                    path: self.path.clone(),
                    schema: self.schema.clone(),
                    key: key.get_ref().to_string(),
                    is_table: value.get_ref().is_table(),
                });
            }
        }
    }

    /// Blames a key of this section, or the section itself for an empty key.
    pub fn error(&mut self, key: &str, problem: impl Into<String>, expected: impl Into<String>) {
        self.reader.report.error(&join(&self.path, key), problem, expected);
    }

    pub fn warn(&mut self, key: &str, problem: impl Into<String>) {
        self.reader.report.warn(&join(&self.path, key), problem);
    }

    fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.note(key);
        let value = self.table?.get(key)?;
        self.reader.place(&join(&self.path, key), value);
        Some(value)
    }

    fn note(&mut self, key: &'static str) {
        self.asked.insert(key);
        self.reader.known.insert(join(&self.schema, key));
    }
}

impl Reader {
    fn open<'t>(&mut self, value: Option<&'t Spanned<DeValue<'t>>>, path: String, schema: String) -> Section<'_, 't> {
        if let Some(value) = value {
            self.place(&path, value);
        }
        let table = match value.map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => Some(table),
            Some(other) => {
                self.report.error(&path, values::describe(other), format!("a section [{path}]"));
                None
            }
            None => None,
        };
        Section { reader: self, table, path, schema, asked: BTreeSet::new() }
    }

    fn place(&mut self, path: &str, value: &Spanned<DeValue<'_>>) {
        let line = self.report.line_at(value.span().start);
        self.report.origin.set_line(path, line);
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    match (path, key) {
        ("", key) => key.into(),
        (path, "") => path.into(),
        (path, key) => format!("{path}.{key}"),
    }
}

/// `known`'s last part, if it stands directly in `schema`.
fn child_of<'k>(known: &'k str, schema: &str) -> Option<&'k str> {
    let rest = if schema.is_empty() { known } else { known.strip_prefix(schema)?.strip_prefix('.')? };
    (!rest.contains('.')).then_some(rest)
}

pub(super) const NAME: &str = "up to 63 letters, digits, dashes and underscores";

/// Names end up in metrics, logs and on command lines.
pub(super) fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// As it must be written in TOML.
pub(super) fn shown_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if bare { key.into() } else { format!("{key:?}") }
}
