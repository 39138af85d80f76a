//! Names of listeners, pools, users and databases, by the small numbers under which they stand in each session's record
//! in the maps.

use std::collections::HashMap;

use parking_lot::Mutex;
use pgsplice_ebpf::flow::{Label, MAX_LABELS};

use crate::bpf::SpliceMaps;

/// Kept for listeners and pools.
const RESERVED: u32 = 1024;

/// A number is never given up: a session may still have it.
#[derive(Debug)]
pub struct Labels(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// By number; the empty name is none.
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl Labels {
    pub fn read(maps: &SpliceMaps) -> Self {
        Self(Mutex::new(Known::read(maps)))
    }

    /// The number of a name, a new one if need be. When all are used, that of the empty name: a process after us does not
    /// find what such a session belonged to.
    pub fn number(&self, maps: &SpliceMaps, name: &str) -> u16 {
        self.number_below(MAX_LABELS, maps, name)
    }

    /// The same for what clients say, of which there may be any number: the last thousand numbers are not for them.
    pub fn number_of_client(&self, maps: &SpliceMaps, name: &str) -> u16 {
        self.number_below(MAX_LABELS - RESERVED, maps, name)
    }

    fn number_below(&self, end: u32, maps: &SpliceMaps, name: &str) -> u16 {
        if name.is_empty() {
            return 0;
        }
        let name = &name[..name.floor_char_boundary(size_of::<Label>())];
        let mut known = self.0.lock();
        if let Some(number) = known.numbers.get(name) {
            return *number;
        }
        let Some(number) = known.free(end) else { return 0 };
        if let Err(error) = maps.set_label(u32::from(number), name) {
            tracing::warn!(name, "the name cannot be kept for the next process: {error}");
            return 0;
        }
        known.insert(number, name.into());
        number
    }

    /// Empty if there is none.
    pub fn name(&self, number: u16) -> String {
        self.0.lock().names.get(usize::from(number)).cloned().unwrap_or_default()
    }
}

impl Known {
    fn read(maps: &SpliceMaps) -> Self {
        let mut names = maps.labels().unwrap_or_else(|error| {
            tracing::warn!("the names of the process before us cannot be read: {error}");
            Vec::new()
        });
        names.truncate(names.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1));
        let mut known = Self { names: vec![String::new()], numbers: HashMap::new() };
        for (number, name) in names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            known.insert(number as u16, name);
        }
        known
    }

    fn free(&self, end: u32) -> Option<u16> {
        let next = self.names.len();
        (next < end as usize).then_some(next as u16)
    }

    fn insert(&mut self, number: u16, name: String) {
        if self.names.len() <= usize::from(number) {
            self.names.resize(usize::from(number) + 1, String::new());
        }
        self.names[usize::from(number)] = name.clone();
        self.numbers.insert(name, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_to_the_end_and_zero_is_nobody() {
        let mut known = Known { names: vec![String::new()], numbers: HashMap::new() };
        assert_eq!(known.free(MAX_LABELS), Some(1));
        known.insert(7, "app".into());
        assert_eq!((known.free(MAX_LABELS), known.free(8), known.numbers["app"]), (Some(8), None, 7));
        known.insert(MAX_LABELS as u16 - 1, "last".into());
        assert_eq!(known.free(MAX_LABELS), None);
    }
}
