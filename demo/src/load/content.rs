//! The content of objects: generated from a seed, so that a model needs only 16 bytes per object.

/// A deterministic pseudorandom sequence (SplitMix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, reduced to `range`, which must not be empty.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }
}

/// The content of one version of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Determines the bytes.
    pub seed: u64,
    /// Length in bytes.
    pub length: usize,
}

impl Content {
    /// Generates the bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut rng = Rng::new(self.seed);
        let mut bytes = Vec::with_capacity(self.length + 8);
        while bytes.len() < self.length {
            bytes.extend_from_slice(&rng.draw().to_le_bytes());
        }
        bytes.truncate(self.length);
        bytes
    }

    /// Whether `bytes` equals this content.
    pub fn is(self, bytes: &[u8]) -> bool {
        let mut rng = Rng::new(self.seed);
        bytes.len() == self.length
            && bytes.chunks(8).all(|chunk| *chunk == rng.draw().to_le_bytes()[..chunk.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_knows_itself_and_nothing_else() {
        for length in [0, 1, 7, 8, 9, 4096] {
            let content = Content { seed: 42, length };
            let mut bytes = content.bytes();
            assert_eq!(bytes.len(), length);
            assert!(content.is(&bytes));
            assert!(!Content { seed: 42, length: length + 1 }.is(&bytes));
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
                assert!(!content.is(&bytes), "one bit of {length} bytes");
            }
        }
    }
}
