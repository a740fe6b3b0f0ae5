//! Chance that can be replayed: xoshiro256**, seeded through splitmix64.
//!
//! Written out here because a seed that failed once has to fail for ever: the algorithms behind the generators of `rand`
//! may change with its versions, and so may how it draws a range.

use std::time::Duration;

use super::SimTime;

/// A generator whose numbers depend on its seed alone.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of `seed`.
    #[must_use]
    pub fn new(mut seed: u64) -> Self {
        Self(std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which must not be 0. The bias of the remainder does not matter for bounds this small.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// An index into something that has `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A span from `from` to `to` microseconds.
    pub fn micros(&mut self, from: u64, to: u64) -> SimTime {
        (from + self.below(to - from + 1)) * 1_000
    }

    /// A span from `from` to `to` milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> SimTime {
        self.micros(from * 1_000, to * 1_000)
    }

    /// A duration from `from` to `to` milliseconds.
    pub fn duration(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_nanos(self.millis(from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut rng = Rng::new(1);
        let first: Vec<u64> = (0..3).map(|_| rng.draw()).collect();
        assert_eq!(first, [0xb3f2_af6d_0fc7_10c5, 0x853b_5596_4736_4cea, 0x92f8_9756_082a_4514]);
    }
}
