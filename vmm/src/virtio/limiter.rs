//! Token buckets: how much a device may do in a while.
//!
//! A bucket holds at most its burst, and fills at its rate. A request is let through while the bucket is not empty, and
//! what it turned out to cost is taken out afterwards, be it more than there is: then the next one waits until the debt is
//! paid. So a request need not be measured before it is served, one larger than the burst is not stuck for ever, and in
//! any span of time no more passes than the burst, the rate times the span, and one request.

use std::time::{Duration, Instant};

use super::wake::Wake;
use crate::config::{Bucket, RateLimit};

/// Parts of a token: tokens are counted in units of a token per nanosecond, so that no rate loses anything to rounding.
const PARTS: u128 = 1_000_000_000;

/// A bucket that is in use. Times are spans since any fixed moment.
#[derive(Debug, Clone)]
struct Level {
    rule: Bucket,
    /// What is in it, in parts of a token; the debt, if it is negative.
    parts: i128,
    /// When it was last filled.
    filled: Duration,
}

impl Level {
    fn full(rule: Bucket, now: Duration) -> Self {
        Self { rule, parts: capacity(rule), filled: now }
    }

    fn fill(&mut self, now: Duration) {
        // Time that runs backwards fills nothing.
        let nanoseconds = now.saturating_sub(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        let gained = nanoseconds.saturating_mul(u128::from(self.rule.per_second));
        let gained = i128::try_from(gained).unwrap_or(i128::MAX);
        self.parts = self.parts.saturating_add(gained).min(capacity(self.rule));
    }

    /// How long until a request may pass; zero if one may now.
    fn wait(&self) -> Duration {
        if self.parts > 0 {
            return Duration::ZERO;
        }
        // More than nothing must be there: the debt, and one part.
        let missing = self.parts.unsigned_abs() + 1;
        let nanoseconds = missing.div_ceil(u128::from(self.rule.per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, tokens: u64) {
        let parts = i128::try_from(u128::from(tokens) * PARTS).unwrap_or(i128::MAX);
        self.parts = self.parts.saturating_sub(parts);
    }
}

fn capacity(rule: Bucket) -> i128 {
    i128::try_from(u128::from(rule.burst) * PARTS).unwrap_or(i128::MAX)
}

/// The two buckets of one flow: bytes, and operations. Knows no clock.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    bytes: Option<Level>,
    operations: Option<Level>,
}

impl Limiter {
    /// Full buckets.
    #[must_use]
    pub fn new(limit: &RateLimit, now: Duration) -> Self {
        let full = |rule: Option<Bucket>| rule.map(|rule| Level::full(rule, now));
        Self { bytes: full(limit.bytes), operations: full(limit.operations) }
    }

    /// Changes the rules. What is in a bucket stays, as far as it still fits; so does a debt. A new bucket is full.
    pub fn update(&mut self, limit: &RateLimit, now: Duration) {
        for (level, rule) in [(&mut self.bytes, limit.bytes), (&mut self.operations, limit.operations)] {
            *level = rule.map(|rule| match level.take() {
                Some(mut old) => {
                    old.fill(now);
                    Level { rule, parts: old.parts.min(capacity(rule)), filled: old.filled }
                }
                None => Level::full(rule, now),
            });
        }
    }

    /// How long until a request may pass; zero if one may now.
    pub fn wait(&mut self, now: Duration) -> Duration {
        let levels = self.bytes.iter_mut().chain(&mut self.operations);
        levels.fold(Duration::ZERO, |longest, level| {
            level.fill(now);
            longest.max(level.wait())
        })
    }

    /// Takes out what a request cost: its bytes, and one operation.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(level) = &mut self.bytes {
            level.spend(bytes);
        }
        if let Some(level) = &mut self.operations {
            level.spend(1);
        }
    }

    fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

/// A limiter on the host's clock, for one flow of a device.
#[derive(Debug)]
pub struct Throttle {
    limiter: Limiter,
    epoch: Instant,
    throttled: u64,
}

impl Throttle {
    /// Full buckets.
    #[must_use]
    pub fn new(limit: &RateLimit) -> Self {
        Self { limiter: Limiter::new(limit, Duration::ZERO), epoch: Instant::now(), throttled: 0 }
    }

    /// Whether the request at hand may pass now. If not, `wake` is set for when it may.
    pub fn ready(&mut self, wake: &mut Wake) -> bool {
        if self.limiter.is_unlimited() {
            return true;
        }
        let wait = self.limiter.wait(self.epoch.elapsed());
        if wait.is_zero() {
            return true;
        }
        self.throttled += 1;
        wake.after(wait);
        false
    }

    /// A request has passed and moved this many bytes.
    pub fn spend(&mut self, bytes: u64) {
        self.limiter.spend(bytes);
    }

    /// Changes the limits; what waits is looked at again at once.
    pub fn update(&mut self, limit: &RateLimit, wake: &Wake) {
        self.limiter.update(limit, self.epoch.elapsed());
        wake.again();
    }

    /// How often a request had to wait.
    #[must_use]
    pub fn throttled(&self) -> u64 {
        self.throttled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Random;

    fn bucket(per_second: u64, burst: u64) -> Option<Bucket> {
        Some(Bucket { per_second, burst })
    }

    /// A flow that asks whenever it may, for a span; returns the requests that passed as time and bytes.
    fn play(limit: &RateLimit, random: &mut Random, span: Duration, largest: u64) -> Vec<(Duration, u64)> {
        let mut limiter = Limiter::new(limit, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut passed = Vec::new();
        while now <= span && passed.len() < 20_000 {
            let wait = limiter.wait(now);
            if wait.is_zero() {
                let bytes = random.below(largest + 1);
                limiter.spend(bytes);
                passed.push((now, bytes));
                continue;
            }
            // Never early: one nanosecond before, it may not pass.
            assert!(!limiter.clone().wait(now + wait - Duration::from_nanos(1)).is_zero());
            // Never late: at the moment that was told, it may.
            assert!(limiter.clone().wait(now + wait).is_zero());
            // Sometimes a flow comes late, or in between.
            now += match random.below(4) {
                0 => wait + Duration::from_nanos(random.below(1 << 30)),
                1 => wait / 2,
                _ => wait,
            };
        }
        passed
    }

    #[test]
    fn no_span_passes_more_than_burst_rate_and_one_request() {
        let mut random = Random(11);
        for _ in 0..60 {
            let rate = 1 + random.magnitude(30);
            let burst = 1 + random.magnitude(30);
            let largest = random.magnitude(24);
            let limit =
                RateLimit { bytes: bucket(rate, burst), operations: bucket(1 + rate / 7, 1 + burst / 9) };
            let passed = play(&limit, &mut random, Duration::from_secs(20), largest);
            for _ in 0..200 {
                let from = usize::try_from(random.below(passed.len() as u64)).unwrap();
                let to = from + usize::try_from(random.below((passed.len() - from) as u64)).unwrap();
                let span = (passed[to].0 - passed[from].0).as_nanos();
                let bytes: u64 = passed[from..=to].iter().map(|(_, bytes)| bytes).sum();
                let bound = |rate: u64, burst: u64, one: u64| {
                    u128::from(burst) + u128::from(one) + (span * u128::from(rate)).div_ceil(PARTS)
                };
                assert!(u128::from(bytes) <= bound(rate, burst, largest));
                assert!((to - from + 1) as u128 <= bound(1 + rate / 7, 1 + burst / 9, 1));
            }
        }
    }

    #[test]
    fn a_flow_that_asks_in_time_gets_its_rate() {
        let limit = RateLimit { bytes: bucket(1_000_003, 4096), operations: None };
        let mut limiter = Limiter::new(&limit, Duration::ZERO);
        let (mut now, mut bytes) = (Duration::ZERO, 0u64);
        while now < Duration::from_secs(10) {
            let wait = limiter.wait(now);
            if wait.is_zero() {
                limiter.spend(1500);
                bytes += 1500;
            }
            now += wait;
        }
        assert!((10_000_030..10_000_030 + 4096 + 1500).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_for() {
        let limit = RateLimit { bytes: bucket(100, 10), operations: None };
        let mut limiter = Limiter::new(&limit, Duration::ZERO);
        assert!(limiter.wait(Duration::ZERO).is_zero());
        limiter.spend(1010);
        let wait = limiter.wait(Duration::ZERO);
        assert!((Duration::from_secs(10)..=Duration::from_millis(10_001)).contains(&wait), "{wait:?}");
    }

    #[test]
    fn a_change_of_rules_keeps_debts_and_gives_no_burst_again() {
        let slow = RateLimit { bytes: bucket(10, 1000), operations: None };
        let fast = RateLimit { bytes: bucket(1000, 1000), operations: None };
        let mut limiter = Limiter::new(&slow, Duration::ZERO);
        limiter.spend(2000);
        assert!(limiter.wait(Duration::ZERO) >= Duration::from_secs(100));
        limiter.update(&fast, Duration::ZERO);
        let wait = limiter.wait(Duration::ZERO);
        assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&wait), "{wait:?}");
        limiter.update(&RateLimit::default(), Duration::ZERO);
        assert!(limiter.is_unlimited() && limiter.wait(Duration::ZERO).is_zero());
    }

    #[test]
    fn the_largest_numbers_and_a_clock_that_runs_backwards_do_no_harm() {
        let limit = RateLimit { bytes: bucket(u64::MAX, u64::MAX), operations: bucket(1, 1) };
        let mut limiter = Limiter::new(&limit, Duration::MAX);
        for _ in 0..1000 {
            limiter.spend(u64::MAX);
        }
        assert!(!limiter.wait(Duration::ZERO).is_zero());
        limiter.update(&limit, Duration::ZERO);
        assert!(!limiter.wait(Duration::MAX).is_zero());
    }
}
