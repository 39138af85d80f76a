//! Names for labs that live at the same time, in one process or in several.

use std::sync::atomic::{AtomicU32, Ordering};

/// An id for a lab that no other running process has, nor any of the last thousand that this one made: a process may
/// keep one lab while it makes and drops a hundred others.
pub fn unique_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    id(std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Of one length, so that a pid and a count never read like another pid with another count.
fn id(pid: u32, count: u32) -> String {
    let digits = |number: u32, places: u32| {
        let digit = move |place| char::from_digit(number / 36_u32.pow(place) % 36, 36).unwrap_or('0');
        (0..places).rev().map(digit).collect::<String>()
    };
    // The kernel's largest pid is 2^22.
    format!("t{}{}", digits(pid, 5), digits(count, 2))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_told_apart_and_fit() {
        assert_eq!(id(1, 0), "t0000100");
        assert!(super::super::state::check_id(&id(1 << 22, u32::MAX)).is_ok());
        let all = |pid| (0..36 * 36).map(move |count| id(pid, count));
        let unlike: BTreeSet<String> = [0x1a2, 0x1a2b].into_iter().flat_map(all).collect();
        assert_eq!(unlike.len(), 2 * 36 * 36);
    }
}
