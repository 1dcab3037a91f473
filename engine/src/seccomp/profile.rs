//! Docker's profile format: rules on system calls, some of which depend on the container's capabilities, the kernel or the CPU.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{SeccompError, number};

/// Most rules, and most names of one rule.
const MAX_RULES: usize = 4096;
/// The guest's oldest kernel.
const GUEST_KERNEL: (u32, u32) = (6, 1);
/// EPERM, the error of a refused call when the profile names none.
const DEFAULT_ERRNO: u16 = 1;
/// Largest error number that the kernel passes on.
const MAX_ERRNO: u16 = 4095;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<RawRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    #[expect(dead_code, reason = "a guest has no 32-bit system calls")]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRule {
    #[serde(default)]
    names: Vec<String>,
    /// One name, in profiles of old.
    #[serde(default)]
    name: Option<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<RawArg>>,
    #[serde(default)]
    #[expect(dead_code, reason = "for people")]
    comment: Option<String>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawArg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// What the kernel does with a call: the value that a filter returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const KILL_PROCESS: Self = Self(0x8000_0000);
    #[cfg(test)]
    pub(super) const ALLOW: Self = Self(0x7fff_0000);
    /// The call does not exist, so that libraries fall back to older ones.
    pub(super) const NO_SUCH_CALL: Self = Self(0x0005_0000 | libc::ENOSYS as u32);

    fn parse(name: &str, errno: Option<u16>, default_errno: u16) -> Result<Self, SeccompError> {
        let errno = errno.unwrap_or(default_errno);
        if errno > MAX_ERRNO {
            return Err(SeccompError::Malformed(format!("{errno} is no error number")));
        }
        Ok(Self(match name {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
            "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
            "SCMP_ACT_TRAP" => 0x0003_0000,
            "SCMP_ACT_ERRNO" => 0x0005_0000 | u32::from(errno),
            "SCMP_ACT_TRACE" => 0x7ff0_0000 | u32::from(errno),
            "SCMP_ACT_LOG" => 0x7ffc_0000,
            "SCMP_ACT_ALLOW" => 0x7fff_0000,
            "SCMP_ACT_NOTIFY" => return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY".to_owned())),
            other => return Err(SeccompError::Malformed(format!("there is no action {other:?}"))),
        }))
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal after an AND with this mask.
    Masked(u64),
}

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// What is done with one system call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Decision {
    /// The first one all of whose conditions hold.
    pub(super) conditional: Vec<(Vec<Condition>, Action)>,
    /// Without conditions: it wins over those with some, as with libseccomp.
    pub(super) always: Option<Action>,
}

/// The rules that hold for a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) default: Action,
    pub(super) calls: BTreeMap<u32, Decision>,
    /// Highest number that the profile names, whether its rule holds or not: later calls did not exist when it was written.
    pub(super) highest: u32,
}

/// Reads a profile.
pub(super) fn read(text: &str, capabilities: &[String]) -> Result<Rules, SeccompError> {
    let malformed = |why: &dyn std::fmt::Display| SeccompError::Malformed(why.to_string());
    let profile: Profile = serde_json::from_str(text).map_err(|e| malformed(&e))?;
    if let Some(flag) = profile.flags.unwrap_or_default().first() {
        return Err(SeccompError::Unsupported(format!("the flag {flag}")));
    }
    let mut architectures = profile.architectures.unwrap_or_default();
    architectures.extend(profile.arch_map.unwrap_or_default().into_iter().map(|map| map.architecture));
    if !architectures.is_empty() && !architectures.iter().any(|a| a == "SCMP_ARCH_X86_64") {
        return Err(SeccompError::Unsupported("another CPU than x86-64".to_owned()));
    }
    let default_errno = profile.default_errno_ret.unwrap_or(DEFAULT_ERRNO);
    let default = Action::parse(&profile.default_action, None, default_errno)?;
    let mut rules = Rules { default, calls: BTreeMap::new(), highest: 0 };
    let raw = profile.syscalls.unwrap_or_default();
    if raw.len() > MAX_RULES || raw.iter().any(|rule| rule.names.len() > MAX_RULES) {
        return Err(malformed(&"it has more than 4096 rules or names"));
    }
    for mut rule in raw {
        rule.names.extend(rule.name.take());
        // A name that this CPU does not have cannot be called either.
        let numbers: Vec<u32> = rule.names.iter().filter_map(|name| number(name)).collect();
        rules.highest = numbers.iter().copied().fold(rules.highest, u32::max);
        let action = Action::parse(&rule.action, rule.errno_ret, DEFAULT_ERRNO)?;
        if action == default || !holds(&rule, capabilities)? {
            continue;
        }
        let conditions: Vec<Condition> =
            rule.args.iter().flatten().map(condition).collect::<Result<_, _>>()?;
        for number in numbers {
            let decision = rules.calls.entry(number).or_default();
            if conditions.is_empty() {
                decision.always.get_or_insert(action);
            } else if repeats(&conditions) {
                // Several conditions on one argument are alternatives, as with runc.
                decision.conditional.extend(conditions.iter().map(|c| (vec![*c], action)));
            } else {
                decision.conditional.push((conditions.clone(), action));
            }
        }
    }
    Ok(rules)
}

fn repeats(conditions: &[Condition]) -> bool {
    conditions.iter().enumerate().any(|(i, c)| conditions[..i].iter().any(|d| d.argument == c.argument))
}

fn condition(arg: &RawArg) -> Result<Condition, SeccompError> {
    let comparison = match arg.op.as_str() {
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_MASKED_EQ" => Comparison::Masked(arg.value),
        other => return Err(SeccompError::Malformed(format!("there is no comparison {other:?}"))),
    };
    if arg.index > 5 {
        return Err(SeccompError::Malformed(format!("a system call has no argument {}", arg.index)));
    }
    let value = if matches!(comparison, Comparison::Masked(_)) { arg.value_two } else { arg.value };
    Ok(Condition { argument: arg.index, comparison, value })
}

fn holds(rule: &RawRule, capabilities: &[String]) -> Result<bool, SeccompError> {
    let has = |cap: &String| capabilities.contains(cap);
    let native = |arch: &String| matches!(arch.as_str(), "amd64" | "x86_64" | "SCMP_ARCH_X86_64");
    if let Some(includes) = &rule.includes {
        let caps = includes.caps.iter().flatten().all(has);
        let arches = includes.arches.as_ref().is_none_or(|a| a.is_empty() || a.iter().any(native));
        if !caps || !arches || !kernel_is_new_enough(includes.min_kernel.as_deref())? {
            return Ok(false);
        }
    }
    if let Some(excludes) = &rule.excludes {
        let caps = excludes.caps.iter().flatten().any(has);
        let arches = excludes.arches.iter().flatten().any(native);
        let kernel = match excludes.min_kernel.as_deref() {
            None => false,
            some => kernel_is_new_enough(some)?,
        };
        return Ok(!(caps || arches || kernel));
    }
    Ok(true)
}

fn kernel_is_new_enough(least: Option<&str>) -> Result<bool, SeccompError> {
    let Some(least) = least else { return Ok(true) };
    let parse = || {
        let (major, minor) = least.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let version: (u32, u32) =
        parse().ok_or_else(|| SeccompError::Malformed(format!("{least:?} is no version of a kernel")))?;
    Ok(version <= GUEST_KERNEL)
}
