//! Whether a listener's sessions live long enough for a hand-off to pay: the rule of `splice_after = "auto"`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// A session that is over within this time of its accept was brief; where most are, each is given this long to show that
/// it is not.
pub const BRIEF: Duration = Duration::from_millis(100);

const ONE: u32 = 1 << 16;
/// How many of the last sessions weigh.
const MEMORY: u32 = 16;

/// The share of brief sessions among the last. Two threads that count at once may lose one, which does no harm.
#[derive(Debug, Default)]
pub struct Brief {
    share: AtomicU32,
    /// What [`Self::turns`] was told last.
    last: AtomicBool,
}

impl Brief {
    /// A session has logged in. Whether most before it were brief.
    pub fn logged_in(&self) -> bool {
        let most = self.are_most();
        let share = self.share.load(Relaxed);
        self.share.store(share - share / MEMORY, Relaxed);
        most
    }

    /// Whether most of the last were brief.
    pub fn are_most(&self) -> bool {
        self.share.load(Relaxed) > ONE / 2
    }

    /// Whether this is another answer than the last time; at first that was no.
    pub fn turns(&self, now: bool) -> bool {
        self.last.load(Relaxed) != now && self.last.swap(now, Relaxed) != now
    }

    /// One that had logged in is over.
    pub fn ended(&self, age: Duration) {
        if age < BRIEF {
            let share = self.share.load(Relaxed);
            self.share.store((share + ONE / MEMORY).min(ONE), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(5);

    /// What the last of so many sessions was told, of which every `nth` is long.
    fn last(sessions: u32, nth: u32) -> bool {
        let brief = Brief::default();
        (1..=sessions).fold(false, |_, number| {
            let told = brief.logged_in();
            brief.ended(if number % nth == 0 { LONG } else { SHORT });
            told
        })
    }

    #[test]
    fn what_most_were_counts() {
        assert!(!last(1, u32::MAX));
        assert!(last(100, u32::MAX));
        assert!(last(1000, 4));
        assert!(!last(1000, 1));
    }

    #[test]
    fn sessions_that_stay_are_learnt_from_as_well() {
        let brief = Brief::default();
        (0..100).for_each(|_| {
            brief.logged_in();
            brief.ended(SHORT);
        });
        assert!(brief.logged_in());
        let told: Vec<bool> = (0..MEMORY).map(|_| brief.logged_in()).collect();
        assert!(told[0]);
        assert!(!brief.logged_in());
    }
}
