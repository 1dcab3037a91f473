//! How many guest instructions our kernel and agent need, from the kernel's entry point until the agent is ready. They are counted, so
//! that the figure is the same on every host.

mod qemu;

/// Where it is to go.
const GOAL: u64 = 15_000_000;
/// What was reached, and a twentieth: who makes the start dearer than that shall notice.
const BUDGET: u64 = 20_000_000;

#[test]
fn the_agent_is_ready_within_a_counted_number_of_guest_instructions() {
    let parts = match qemu::agent::parts() {
        Ok(parts) => parts,
        Err(why) => {
            eprintln!("skipped: instructions to the agent's hello: {why}");
            return;
        }
    };
    let counts = qemu::agent::count(parts, None);
    println!("from the kernel's entry to the agent's hello: {counts:?}; the goal is {GOAL}");
    assert!(counts.instructions <= BUDGET, "{counts:?}");
    // No kernel, or no program, has run: then what was counted is something else.
    assert!(counts.user > 1000 && counts.user < counts.instructions / 2, "{counts:?}");
}
