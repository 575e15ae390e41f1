//! Numbers that look random, from a seed that a failing test shows.

use std::time::SystemTime;

/// A small generator (splitmix64). Not for secrets.
#[derive(Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// From `$VIRTBUS_SEED`, else from the clock. The seed is printed: libtest shows it when the
    /// test fails.
    pub fn seeded() -> Self {
        let named = std::env::var("VIRTBUS_SEED").ok();
        let seed = named.map_or_else(now, |text| text.parse().expect("VIRTBUS_SEED is a number"));
        println!("VIRTBUS_SEED={seed}");
        Self { state: seed }
    }

    /// From this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator of its own, for a part that runs beside others.
    pub fn fork(&mut self) -> Self {
        Self::new(self.word())
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).unwrap()]
    }

    /// Bytes that no compressor makes smaller.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.word().to_le_bytes());
        words.flatten().take(count).collect()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_nanos() % u128::from(u64::MAX)).unwrap()
}
