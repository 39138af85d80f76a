//! Whether a listener's sessions live long enough for a hand-off to pay: the rule of `splice_after = "auto"`.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

/// A session that is over within this time of its accept was brief; where most are, each is given this long to show that
/// it is not.
pub const BRIEF: Duration = Duration::from_millis(100);

const ONE: u32 = 1 << 16;
const TOLD_NO: u32 = 1;
const TOLD_YES: u32 = 2;
/// How many of the last sessions weigh.
const MEMORY: u32 = 16;

/// The share of brief sessions among the last. Two threads that count at once may lose one, which does no harm.
#[derive(Debug, Default)]
pub struct Brief {
    share: AtomicU32,
    /// What [`Self::tell`] has told last; nothing at first.
    told: AtomicU32,
    telling: Mutex<()>,
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

    /// Passes the answer on to `tell` if it is another than the last time, and again until that says that it took it.
    /// At first always: who is told may still know what a listener before this one said.
    pub fn tell(&self, now: bool, tell: impl FnOnce() -> bool) {
        let now = if now { TOLD_YES } else { TOLD_NO };
        if self.told.load(Relaxed) == now {
            return;
        }
        // One after the other, so that the last word told is the last one kept.
        let _one = self.telling.lock();
        if self.told.load(Relaxed) != now && tell() {
            self.told.store(now, Relaxed);
        }
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

    #[test]
    fn what_is_told_is_told_once_and_at_first() {
        let brief = Brief::default();
        let told = std::cell::RefCell::new(Vec::new());
        let tell = |now, takes| {
            brief.tell(now, || {
                told.borrow_mut().push(now);
                takes
            });
        };
        tell(false, false);
        tell(false, true);
        tell(false, true);
        tell(true, true);
        tell(true, true);
        tell(false, true);
        assert_eq!(*told.borrow(), [false, false, true, false]);
    }
}
