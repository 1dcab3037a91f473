//! The kept corpus, as it is and mutated by a seeded generator: the same inputs in every run.

use std::path::Path;

use super::SPLIT;

/// Rounds per target; more with `BULKHEAD_FUZZ_ROUNDS`.
fn rounds(usual: u64) -> u64 {
    std::env::var("BULKHEAD_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap()
    }
}

/// Flips, overwrites, cuts, doubles and splices; numbers that matter are favoured.
fn mutate(rng: &mut Rng, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..=rng.below(6) {
        let at = rng.below(out.len());
        match rng.below(8) {
            0 if !out.is_empty() => out[at] ^= 1 << rng.below(8),
            1 if !out.is_empty() => out[at] = [0, 0xff, 0x80, b'7', b'/', b'.', b'9', b'-'][rng.below(8)],
            2 => out.truncate(at),
            3 => {
                let end = (at + rng.below(600)).min(out.len());
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            4 => {
                let from = rng.below(other.len());
                let end = (from + rng.below(1200)).min(other.len());
                out.splice(at..at, other[from..end].iter().copied());
            }
            5 => {
                let end = (at + rng.below(600)).min(out.len());
                out.drain(at..end);
            }
            // Whole tar blocks, so that the stream stays in step.
            6 if out.len() > 1024 => {
                let block = rng.below(out.len() / 512) * 512;
                let target = rng.below(out.len() / 512) * 512;
                let piece = out[block..block + 512].to_vec();
                out.splice(target..target, piece);
            }
            _ if !out.is_empty() => {
                let digits = ["0", "1", "-1", "9223372036854775807", "18446744073709551615", "777777777777"];
                let text = digits[rng.below(digits.len())].as_bytes();
                let end = (at + text.len()).min(out.len());
                out[at..end].copy_from_slice(&text[..end - at]);
            }
            _ => {}
        }
    }
    out
}

/// The kept inputs of a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3);
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Gives a target its corpus and so many mutations of it; how many of both it took.
fn run(target: &str, seed: u64, usual: u64, take: impl Fn(&[u8]) -> bool) -> (u64, u64) {
    let corpus = corpus(target);
    let kept = corpus.iter().filter(|input| take(input)).count() as u64;
    assert_eq!(kept, corpus.len() as u64, "{target}: the corpus itself is good");
    let mut rng = Rng(seed);
    let mut taken = 0;
    for _ in 0..rounds(usual) {
        let (a, b) = (rng.below(corpus.len()), rng.below(corpus.len()));
        let mut input = mutate(&mut rng, &corpus[a], &corpus[b]);
        if target == "layers" && rng.below(2) == 0 {
            input = [&corpus[b], SPLIT, &input].concat();
        }
        taken += u64::from(take(&input));
    }
    (taken, rounds(usual))
}

#[test]
fn layers() {
    let (taken, rounds) = run("layers", 0x5eed_0001, 4_000, super::layers);
    // A fuzzer whose every input is refused at the door tests the door only.
    assert!(taken > rounds / 50, "only {taken} of {rounds} made an image");
}

#[test]
fn trees() {
    let (taken, rounds) = run("trees", 0x5eed_0005, 4_000, super::trees);
    assert!(taken > rounds / 10, "only {taken} of {rounds} made an image");
}

#[test]
fn documents() {
    run("documents", 0x5eed_0002, 60_000, |data| {
        super::documents(data);
        true
    });
}

#[test]
fn references() {
    run("references", 0x5eed_0003, 100_000, |data| {
        super::references(data);
        true
    });
}

#[test]
fn streams() {
    run("streams", 0x5eed_0004, 150, |data| {
        super::streams(data);
        true
    });
}
