//! The Internet checksum, kept up to date by what changed (RFC 1624): sums of 16-bit words in ones' complement, in
//! whichever byte order the packet has, since that order is the same in the result.

/// A sum, or the difference that a change makes to one.
#[derive(Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub fn add(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    #[inline(always)]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// `old` became `new`, at an even offset.
    #[inline(always)]
    pub fn change(self, old: u32, new: u32) -> Self {
        self.add(!old).add(new)
    }

    /// The same for a word of eight bytes.
    #[inline(always)]
    pub fn change_two(self, old: u64, new: u64) -> Self {
        self.change(old as u32, new as u32).change((old >> 32) as u32, (new >> 32) as u32)
    }

    #[inline(always)]
    pub fn add_two(self, word: u64) -> Self {
        self.add(word as u32).add((word >> 32) as u32)
    }

    /// The same sum of bytes that stand `odd` bytes, 0 or 1, after an even offset.
    #[inline(always)]
    pub fn shifted(self, odd: u32) -> Self {
        Self(u64::from(self.word()) << (8 * odd))
    }

    /// In 32 bits, as the kernel's helpers take it.
    #[inline(always)]
    pub fn word(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once + (once >> 32)) as u32
    }

    #[inline(always)]
    pub fn fold(self) -> u16 {
        let word = self.word();
        let once = (word & 0xffff) + (word >> 16);
        (once + (once >> 16)) as u16
    }

    /// The checksum field that was `old` before this change.
    #[inline(always)]
    pub fn mend(self, old: u16) -> u16 {
        !self.add(u32::from(!old)).fold()
    }
}
