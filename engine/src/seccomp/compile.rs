//! Rules to a BPF program: a binary search for the call's number, so that every call costs about eight comparisons, then the conditions on its
//! arguments if it has any.

use agent::protocol::{Instruction, MAX_FILTER};

use super::SeccompError;
use super::profile::{Action, Comparison, Condition, Decision, Rules};

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// struct seccomp_data of linux/seccomp.h
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// AUDIT_ARCH_X86_64 of linux/audit.h.
pub(super) const X86_64: u32 = 0xc000_003e;

/// Makes the program.
pub(super) fn compile(rules: &Rules) -> Result<Vec<Instruction>, SeccompError> {
    let mut program = vec![
        Instruction(LOAD, 0, 0, ARCHITECTURE),
        Instruction(JUMP_EQUAL, 1, 0, X86_64),
        Instruction(RETURN, 0, 0, Action::KILL_PROCESS.0),
        Instruction(LOAD, 0, 0, NUMBER),
    ];
    program.extend(search(&segments(rules), rules.default)?);
    if program.len() > MAX_FILTER { Err(SeccompError::TooComplex(program.len())) } else { Ok(program) }
}

/// A run of numbers, from this one to the next segment's, with the same decision.
struct Segment<'a> {
    start: u32,
    decision: Outcome<'a>,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome<'a> {
    Return(Action),
    Conditions(&'a Decision),
}

fn segments(rules: &Rules) -> Vec<Segment<'_>> {
    let mut segments: Vec<Segment<'_>> = Vec::new();
    let mut push = |start, decision| {
        if segments.last().is_none_or(|last: &Segment<'_>| last.decision != decision) {
            segments.push(Segment { start, decision });
        }
    };
    let refuses = |action: Action| action.0 & 0x7fff_0000 == 0 || action.0 & 0xffff_0000 == 0x0005_0000;
    // Calls that are newer than the profile do not exist for its container, where the profile would refuse them.
    let beyond = if refuses(rules.default) { Action::NO_SUCH_CALL } else { rules.default };
    let mut next = 0;
    for (&number, decision) in &rules.calls {
        if number > next {
            push(next, Outcome::Return(rules.default));
        }
        push(number, decision.always.map_or(Outcome::Conditions(decision), Outcome::Return));
        next = number + 1;
    }
    if next <= rules.highest {
        push(next, Outcome::Return(rules.default));
        next = rules.highest + 1;
    }
    push(next, Outcome::Return(beyond));
    segments
}

fn search(segments: &[Segment<'_>], default: Action) -> Result<Vec<Instruction>, SeccompError> {
    match segments {
        [] => Ok(vec![Instruction(RETURN, 0, 0, default.0)]),
        [segment] => match segment.decision {
            Outcome::Return(action) => Ok(vec![Instruction(RETURN, 0, 0, action.0)]),
            Outcome::Conditions(decision) => conditions(decision, default),
        },
        _ => {
            let (low, high) = segments.split_at(segments.len() / 2);
            let (below, above) = (search(low, default)?, search(high, default)?);
            let start = high.first().map_or(0, |s| s.start);
            let mut program = match u8::try_from(below.len()) {
                Ok(distance) => vec![Instruction(JUMP_GREATER_EQUAL, distance, 0, start)],
                // A condition jumps 255 instructions at most.
                Err(_) => {
                    let distance =
                        u32::try_from(below.len()).map_err(|_| SeccompError::TooComplex(below.len()))?;
                    vec![Instruction(JUMP_GREATER_EQUAL, 0, 1, start), Instruction(JUMP, 0, 0, distance)]
                }
            };
            program.extend(below);
            program.extend(above);
            Ok(program)
        }
    }
}

/// Rule after rule; each ends in its action, or jumps to the next.
fn conditions(decision: &Decision, default: Action) -> Result<Vec<Instruction>, SeccompError> {
    let mut program = Vec::new();
    for (conditions, action) in &decision.conditional {
        let blocks: Vec<Vec<Step>> = conditions.iter().map(block).collect();
        let total: usize = blocks.iter().map(Vec::len).sum();
        let mut at = 0;
        for steps in &blocks {
            let end = at + steps.len();
            for step in steps {
                at += 1;
                // From the instruction after this one.
                let distance = |to: To| {
                    let distance = match to {
                        To::Next => 0,
                        To::Pass => end - at,
                        // Beyond the action.
                        To::Fail => total + 1 - at,
                    };
                    u8::try_from(distance).map_err(|_| SeccompError::TooComplex(total))
                };
                program.push(match *step {
                    Step::Load(offset) => Instruction(LOAD, 0, 0, offset),
                    Step::And(mask) => Instruction(AND, 0, 0, mask),
                    Step::Jump(code, value, yes, no) => {
                        Instruction(code, distance(yes)?, distance(no)?, value)
                    }
                });
            }
        }
        program.push(Instruction(RETURN, 0, 0, action.0));
    }
    program.push(Instruction(RETURN, 0, 0, default.0));
    Ok(program)
}

#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds.
    Pass,
    /// It does not.
    Fail,
}

#[derive(Clone, Copy)]
enum Step {
    Load(u32),
    And(u32),
    Jump(u16, u32, To, To),
}

/// One condition: BPF has 32-bit words, so the upper half is looked at first.
fn block(condition: &Condition) -> Vec<Step> {
    use To::{Fail, Next, Pass};
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let (high, low) = halves(condition.value);
    let at = ARGUMENTS + 8 * u32::from(condition.argument);
    let (load_high, load_low) = (Step::Load(at + 4), Step::Load(at));
    let jump = Step::Jump;
    // The upper half decides, unless it is equal.
    let ordered = |above, below, code, yes, no| {
        vec![
            load_high,
            jump(JUMP_GREATER, high, above, Next),
            jump(JUMP_EQUAL, high, Next, below),
            load_low,
            jump(code, low, yes, no),
        ]
    };
    match condition.comparison {
        Comparison::Equal => {
            vec![load_high, jump(JUMP_EQUAL, high, Next, Fail), load_low, jump(JUMP_EQUAL, low, Pass, Fail)]
        }
        Comparison::NotEqual => {
            vec![load_high, jump(JUMP_EQUAL, high, Next, Pass), load_low, jump(JUMP_EQUAL, low, Fail, Pass)]
        }
        Comparison::Masked(mask) => {
            let (mask_high, mask_low) = halves(mask);
            vec![
                load_high,
                Step::And(mask_high),
                jump(JUMP_EQUAL, high, Next, Fail),
                load_low,
                Step::And(mask_low),
                jump(JUMP_EQUAL, low, Pass, Fail),
            ]
        }
        Comparison::Greater => ordered(Pass, Fail, JUMP_GREATER, Pass, Fail),
        Comparison::GreaterOrEqual => ordered(Pass, Fail, JUMP_GREATER_EQUAL, Pass, Fail),
        Comparison::Less => ordered(Fail, Pass, JUMP_GREATER_EQUAL, Fail, Pass),
        Comparison::LessOrEqual => ordered(Fail, Pass, JUMP_GREATER, Fail, Pass),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Seccomp, number};
    use super::*;
    use crate::seccomp::profile::read;

    /// What the kernel's interpreter does with such a program; the second value counts instructions.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend([0; 8]);
        arguments.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let (mut at, mut a, mut steps) = (0usize, 0u32, 0);
        loop {
            let Instruction(code, jt, jf, k) = program[at];
            at += 1;
            steps += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                LOAD => {
                    let k = k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                }
                AND => a &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => branch(a == k),
                JUMP_GREATER => branch(a > k),
                JUMP_GREATER_EQUAL => branch(a >= k),
                RETURN => return (k, steps),
                other => panic!("code {other}"),
            }
        }
    }

    fn matches(condition: &Condition, arguments: [u64; 6]) -> bool {
        let argument = arguments[usize::from(condition.argument)];
        let value = condition.value;
        match condition.comparison {
            Comparison::NotEqual => argument != value,
            Comparison::Less => argument < value,
            Comparison::LessOrEqual => argument <= value,
            Comparison::Equal => argument == value,
            Comparison::GreaterOrEqual => argument >= value,
            Comparison::Greater => argument > value,
            Comparison::Masked(mask) => argument & mask == value,
        }
    }

    /// What the rules say, found the slow way.
    fn expected(rules: &Rules, number: u32, arguments: [u64; 6]) -> u32 {
        let Some(decision) = rules.calls.get(&number) else {
            let beyond = number > rules.highest && rules.default.0 & 0xffff_0000 == 0x0005_0000;
            return if beyond { Action::NO_SUCH_CALL.0 } else { rules.default.0 };
        };
        let conditional =
            decision.conditional.iter().find(|(all, _)| all.iter().all(|c| matches(c, arguments)));
        decision.always.or(conditional.map(|(_, action)| *action)).unwrap_or(rules.default).0
    }

    fn check_all(text: &str, capabilities: &[String]) {
        let rules = read(text, capabilities).unwrap();
        let program = compile(&rules).unwrap();
        let values = [
            0,
            1,
            2,
            7,
            8,
            40,
            0x20000,
            0x20008,
            0x7e02_0000,
            u64::from(u32::MAX),
            1 << 32,
            (1 << 32) | 8,
            u64::MAX,
        ];
        for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            for value in values {
                for argument in 0..2 {
                    let mut arguments = [3; 6];
                    arguments[argument] = value;
                    let found = run(&program, X86_64, number, arguments).0;
                    assert_eq!(found, expected(&rules, number, arguments), "{number} {arguments:x?}");
                }
            }
        }
        assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]).0, Action::KILL_PROCESS.0, "another architecture");
    }

    const DOCKERS: [&str; 3] = ["CAP_CHOWN", "CAP_SYS_CHROOT", "CAP_KILL"];

    fn caps(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_default_does_what_it_says_for_every_call() {
        check_all(super::super::DEFAULT, &caps(&DOCKERS));
        check_all(super::super::DEFAULT, &caps(&["CAP_SYS_ADMIN", "CAP_BPF"]));
        check_all(super::super::DEFAULT, &[]);
    }

    #[test]
    fn the_default_is_dockers_and_cheap() {
        let program = Seccomp::Default.compile(&caps(&DOCKERS)).unwrap();
        let outcome =
            |name: &str, first: u64| run(&program, X86_64, number(name).unwrap(), [first, 0, 0, 0, 0, 0]).0;
        let allow = Action::ALLOW.0;
        let refuse = 0x0005_0001;
        for name in [
            "read",
            "openat",
            "execve",
            "futex",
            "ptrace",
            "chroot",
            "rseq",
            "capset",
            "setgroups",
            "seccomp",
        ] {
            assert_eq!(outcome(name, 0), allow, "{name}");
        }
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "userfaultfd",
            "io_uring_setup",
            "reboot",
            "perf_event_open",
            "open_by_handle_at",
            "kexec_load",
            "init_module",
            "settimeofday",
            "pivot_root",
            "swapon",
        ] {
            assert_eq!(outcome(name, 0), refuse, "{name}");
        }
        assert_eq!(outcome("clone", 0x11), allow);
        for flag in [0x1000_0000, 0x0002_0000, 0x4000_0000u64, 0x0200_0000] {
            assert_eq!(outcome("clone", flag), refuse, "{flag:x}");
        }
        assert_eq!(outcome("clone3", 0), Action::NO_SUCH_CALL.0);
        assert_eq!((outcome("socket", 2), outcome("socket", 40)), (allow, refuse));
        assert_eq!((outcome("personality", 8), outcome("personality", 1)), (allow, refuse));
        assert_eq!(run(&program, X86_64, 5000, [0; 6]).0, Action::NO_SUCH_CALL.0);
        let most = (0..500).map(|n| run(&program, X86_64, n, [0; 6]).1).max().unwrap();
        assert!(program.len() < 300 && most <= 24, "{} instructions, {most} for one call", program.len());
    }

    #[test]
    fn every_comparison_and_alternatives_on_one_argument() {
        let ops = ["NE", "LT", "LE", "EQ", "GE", "GT"];
        for (op, value) in ops.iter().flat_map(|op| [0, 8, 1 << 32, (1 << 32) | 8, u64::MAX].map(|v| (op, v)))
        {
            let rule = format!(r#"{{"index":1,"value":{value},"op":"SCMP_CMP_{op}"}}"#);
            check_all(
                &format!(
                    r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{rule}]}}]}}"#
                ),
                &[],
            );
        }
        check_all(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":[]}],
            "syscalls":[{"names":["write","no_such"],"action":"SCMP_ACT_LOG","args":[
            {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"name":"open","action":"SCMP_ACT_TRACE","errnoRet":7,"args":[
            {"index":0,"value":18446744073709551615,"valueTwo":8,"op":"SCMP_CMP_MASKED_EQ"},
            {"index":1,"value":3,"op":"SCMP_CMP_GE"}]},
            {"names":["close"],"action":"SCMP_ACT_KILL_PROCESS"},{"names":["stat"],"action":"SCMP_ACT_TRAP"}]}"#,
            &[],
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |json: &str| Seccomp::Profile(json.to_owned()).compile(&[]).unwrap_err().to_string();
        for (json, text) in [
            ("", "malformed"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction":"ALLOW"}"#, "no action"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#, "FLAG_LOG"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#, "listenerPath"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_ARM"]}"#, "x86-64"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "error number"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":0,"op":"EQ"}]}]}"#,
                "comparison",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","includes":{"minKernel":"new"}}]}"#,
                "version",
            ),
        ] {
            assert!(refused(json).contains(text), "{json}: {}", refused(json));
        }
        assert_eq!(
            Seccomp::Profile(" ".repeat(super::super::MAX_PROFILE + 1)).compile(&[]),
            Err(SeccompError::TooLong)
        );
        let arg = |n: u64| format!(r#"{{"index":0,"value":{n},"op":"SCMP_CMP_EQ"}}"#);
        let many: Vec<String> = (0..2000).map(arg).collect();
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_KILL","args":[{}]}}]}}"#,
            many.join(",")
        );
        assert!(matches!(Seccomp::Profile(text).compile(&[]), Err(SeccompError::TooComplex(_))));
        assert_eq!(Seccomp::Unconfined.compile(&[]), Ok(Vec::new()));
    }
}
