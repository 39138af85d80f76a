//! Names of listeners and pools, by the small numbers under which they stand in each session's record in the maps.

use std::collections::HashMap;

use parking_lot::Mutex;
use pgsplice_ebpf::flow::MAX_LABELS;

use crate::bpf::SpliceMaps;

#[derive(Debug, Default)]
pub struct Labels(Mutex<Option<HashMap<String, u16>>>);

impl Labels {
    /// The number of a name, a new one if need be. When all are used, that of the empty name: a process after us does not
    /// find what such a session belonged to.
    pub fn number(&self, maps: &SpliceMaps, name: &str) -> u16 {
        let mut known = self.0.lock();
        let known = known.get_or_insert_with(|| read(maps));
        if let Some(number) = known.get(name) {
            return *number;
        }
        // 0 stays the empty name.
        let Some(number) = (1..MAX_LABELS as u16).find(|number| !known.values().any(|used| used == number)) else {
            return 0;
        };
        if let Err(error) = maps.set_label(u32::from(number), name) {
            tracing::warn!(name, "the name cannot be kept for the next process: {error}");
            return 0;
        }
        known.insert(name.into(), number);
        number
    }

    /// Empty if there is none.
    pub fn name(&self, maps: &SpliceMaps, number: u16) -> String {
        let mut known = self.0.lock();
        let known = known.get_or_insert_with(|| read(maps));
        known.iter().find(|(_, known)| **known == number).map(|(name, _)| name.clone()).unwrap_or_default()
    }
}

fn read(maps: &SpliceMaps) -> HashMap<String, u16> {
    let labels = maps.labels().unwrap_or_else(|error| {
        tracing::warn!("the names of the process before us cannot be read: {error}");
        Vec::new()
    });
    labels.into_iter().enumerate().filter(|(_, name)| !name.is_empty()).map(|(n, name)| (name, n as u16)).collect()
}
