//! Random failures under a random workload, both from one seed, and what must hold afterwards.
//!
//! ```text
//! seed ──► schedule (kills, cuts, power) ──► lab ◄── workload (clients that write and read) ◄── seed
//!                                             │            └──► histories ──► linear
//!                                             └──► converge: wanted = observed, on every node; residue: nothing left
//! ```

pub mod converge;
pub mod linear;
pub mod residue;
pub mod schedule;
pub mod workload;

/// Numbers that follow from a seed, the same with every release of every library: a replay depends on them.
/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        // Neighbouring seeds begin alike otherwise.
        random.number();
        random
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(among.len() as u64)).expect("an index fits");
        &among[index]
    }
}
