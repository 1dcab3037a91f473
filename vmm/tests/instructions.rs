//! How many guest instructions our kernel and agent need, from the kernel's entry point until the agent is ready. They are counted, so
//! that the figures are the same on every host (docs/performance.md).

mod qemu;

use qemu::agent::{Equipment, count, parts};

/// Where it is to stay, for a machine that has what saying hello takes.
const GOAL: u64 = 15_000_000;
/// What was reached (14.95 M and 16.08 M), and a twentieth: who makes the start dearer than that shall notice.
const LEAST: u64 = 15_700_000;
const CONTAINER: u64 = 16_900_000;

#[test]
fn the_agent_is_ready_within_a_counted_number_of_guest_instructions() {
    let parts = match parts() {
        Ok(parts) => parts,
        Err(why) => {
            eprintln!("skipped: instructions to the agent's hello: {why}");
            return;
        }
    };
    for (name, equipment, budget) in
        [("vsock alone", Equipment::Least, LEAST), ("a container's machine", Equipment::Container, CONTAINER)]
    {
        let counts = count(&parts, equipment, None);
        println!("from the kernel's entry to the agent's hello, {name}: {counts:?}; the goal is {GOAL}");
        assert!(counts.instructions <= budget, "{name}: {counts:?}, more than {budget}");
        // No kernel, or no program, has run: then what was counted is something else.
        assert!(counts.user > 1000 && counts.user < counts.instructions / 2, "{name}: {counts:?}");
    }
}
