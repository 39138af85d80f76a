//! What a stream carries: one CopyData message over and over, with bytes that look like noise, so that a byte that is
//! lost, doubled or moved is seen.

/// The message, twice, so that every slice of up to one period lies in one piece.
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Self {
        let mut message = vec![b'd'];
        message.extend((Self::LEN as u32 - 1).to_be_bytes());
        let mut state = 0x9E37_79B9_u32;
        message.resize_with(Self::LEN, || {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        });
        message.extend_from_within(..);
        Self(message)
    }
}

impl Pattern {
    /// Length of the message, type and length included. A prime: no segment or page size divides it, so that no loss of
    /// whole ones lands on equal bytes.
    pub const LEN: usize = 65_521;

    /// What stands at this place of the stream: a whole period of it.
    pub fn at(&self, place: u64) -> &[u8] {
        let start = (place % Self::LEN as u64) as usize;
        &self.0[start..start + Self::LEN]
    }

    /// Whether `bytes` is what the stream has at this place.
    pub fn agrees(&self, mut place: u64, bytes: &[u8]) -> bool {
        bytes.chunks(Self::LEN).all(|chunk| {
            let same = self.at(place)[..chunk.len()] == *chunk;
            place += chunk.len() as u64;
            same
        })
    }

    /// Bytes from this place to the end of its message.
    pub fn left(place: u64) -> usize {
        (Self::LEN - (place % Self::LEN as u64) as usize) % Self::LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_doubled_or_changed_byte_disagrees() {
        let pattern = Pattern::default();
        let mut stream = Vec::new();
        while stream.len() < 3 * Pattern::LEN {
            let place = stream.len() as u64;
            stream.extend(&pattern.at(place)[..10_000]);
        }
        assert!(pattern.agrees(0, &stream) && pattern.agrees(77, &stream[77..]));
        assert!(!pattern.agrees(78, &stream[77..]));
        assert!(!pattern.agrees(1448, &stream[..1448]));
        stream[100_000] ^= 1;
        assert!(!pattern.agrees(0, &stream));
    }

    #[test]
    fn it_is_a_stream_of_whole_messages() {
        let pattern = Pattern::default();
        assert_eq!(super::super::wire::frame(pattern.at(0)), Ok(Some((b'd', Pattern::LEN))));
        assert_eq!((Pattern::left(0), Pattern::left(1), Pattern::left(Pattern::LEN as u64)), (0, Pattern::LEN - 1, 0));
    }
}
