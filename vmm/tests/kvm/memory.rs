//! What a process costs in memory, from /proc.

/// Bytes of memory that nobody else's files back, shared pages counted by their share; guest RAM is told apart.
pub struct Cost {
    pub own: u64,
    /// The share of guest RAM, whatever backs it.
    pub guest: u64,
}

/// Reads a process's mappings.
pub fn cost(pid: u32) -> Cost {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut cost = Cost { own: 0, guest: 0 };
    let mut guest = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let kib =
            || line.split_ascii_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Pss:" if guest => cost.guest += kib() << 10,
            "Pss_Dirty:" if !guest => cost.own += kib() << 10,
            _ if !first.ends_with(':') => {
                guest = line.contains("memfd:guest-ram") || line.contains("memfd:test");
            }
            _ => {}
        }
    }
    cost
}
