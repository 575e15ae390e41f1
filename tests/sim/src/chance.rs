//! Chance that is the same each time: numbers made of a seed and of what they are for.
//!
//! Most of what happens by chance here doesn't depend on how many numbers were drawn before, but
//! on what it happens to: then one message more or less doesn't change the fate of all others.

/// Mixes the bits of a number.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds bytes to a hash.
#[must_use]
pub fn hash(before: u64, bytes: &[u8]) -> u64 {
    let mut hash = before ^ (bytes.len() as u64).wrapping_mul(0x517c_c1b7_2722_0a95);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    mix(hash)
}

/// A row of numbers.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Begins with a seed, for a purpose.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self(hash(mix(seed), purpose.as_bytes()))
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `low` to below `high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low).max(1)
    }

    /// True so often in a thousand.
    pub fn permille(&mut self, times: u64) -> bool {
        self.draw() % 1_000 < times
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let count = of.len() as u64;
        let place = self.draw() % count.max(1);
        &of[usize::try_from(place).unwrap_or(0)]
    }
}
