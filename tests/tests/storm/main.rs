//! Storms: many containers at once, and processes that are killed at any moment. Nothing may be lost, nothing may be left.

mod client;
mod kills;
mod many;

/// Numbers that are as good as random (xorshift64*). Its seed is printed, so that a storm can be had again with `STORM_SEED`.
pub struct Dice(u64);

impl Dice {
    /// From `STORM_SEED`, else from the clock.
    pub fn cast() -> Self {
        let given = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::try_from(since.as_nanos() & u128::from(u64::MAX)).unwrap() | 1
        };
        let seed = given.unwrap_or_else(now);
        println!("STORM_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}
