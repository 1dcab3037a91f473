//! Where the guest instructions of a start go: `cargo run -p vmm --example boot-profile [SYSTEM.MAP]`.
//!
//! Boots kernel and agent (BULKHEAD_KERNEL_KVM, BULKHEAD_INITRAMFS) in QEMU until the agent says hello, and prints the count and the
//! functions in which most were executed. The names come from the System.map of the kernel's build.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/qemu/mod.rs"]
mod qemu;

use std::collections::HashMap;

use qemu::agent::Equipment;

/// Functions that are shown.
const SHOWN: usize = 150;

fn main() {
    let parts = match qemu::agent::parts() {
        Ok(parts) => parts,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let mut symbols = Vec::new();
    if let Some(path) = std::env::args().nth(1) {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
                (words.next(), words.next(), words.next())
            {
                symbols.push((u64::from_str_radix(address, 16).unwrap(), name.to_owned()));
            }
        }
    }
    symbols.sort();
    let file = tempfile::NamedTempFile::new().unwrap();
    let counts = qemu::agent::count(&parts, Equipment::Container, Some(file.path().to_owned()));
    println!("{counts:?}");
    let mut functions: HashMap<&str, u64> = HashMap::new();
    for line in std::fs::read_to_string(file.path()).unwrap().lines() {
        let (address, executed) = line.split_once(' ').unwrap();
        let address = u64::from_str_radix(address, 16).unwrap();
        let before = symbols.partition_point(|(start, _)| *start <= address);
        let name = match symbols.get(before.wrapping_sub(1)) {
            _ if address >> 63 == 0 => "(user programs, and the kernel's first steps)",
            Some((_, name)) => name,
            None => "(kernel)",
        };
        *functions.entry(name).or_default() += executed.parse::<u64>().unwrap();
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, executed)| std::cmp::Reverse(*executed));
    let all: u64 = functions.iter().map(|(_, executed)| executed).sum();
    println!("{all:>10}  until QEMU ended");
    for (name, executed) in functions.iter().take(SHOWN) {
        println!("{executed:>10}  {name}");
    }
}
