//! The capabilities of a container's processes, as Docker grants them.

use std::collections::BTreeSet;

use crate::EngineError;

/// Docker's fourteen.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The others of capabilities(7).
const OTHERS: [&str; 27] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

const ALL: &str = "ALL";

/// The capabilities' names, `CAP_` in front. Adding wins over dropping when both name one, unless all are added: as with Docker.
///
/// # Errors
/// There is no capability of a name.
pub(super) fn granted(add: &[String], drop: &[String]) -> Result<Vec<String>, EngineError> {
    let (add, drop) = (names(add)?, names(drop)?);
    let all = || DEFAULT.into_iter().chain(OTHERS);
    let kept: BTreeSet<&str> = if add.contains(ALL) {
        all().filter(|name| !drop.contains(*name)).collect()
    } else if drop.contains(ALL) {
        all().filter(|name| add.contains(*name)).collect()
    } else {
        let wanted = |name: &str| add.contains(name) || (DEFAULT.contains(&name) && !drop.contains(name));
        all().filter(|name| wanted(name)).collect()
    };
    Ok(kept.into_iter().map(|name| format!("CAP_{name}")).collect())
}

/// A capability's name without `CAP_`, in capitals; or `ALL`.
///
/// # Errors
/// There is none of that name.
pub fn capability(name: &str) -> Result<String, EngineError> {
    let upper = name.trim().to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known = plain == ALL || DEFAULT.iter().chain(&OTHERS).any(|known| *known == plain);
    if known {
        Ok(plain.to_owned())
    } else {
        Err(EngineError::Invalid(format!("unknown capability: {name:?}")))
    }
}

fn names(list: &[String]) -> Result<BTreeSet<String>, EngineError> {
    list.iter().map(|name| capability(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Vec<String> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        granted(&list(add), &list(drop)).unwrap()
    }

    #[test]
    fn as_docker_grants_them() {
        assert_eq!(of(&[], &[]).len(), 14);
        assert_eq!(of(&["ALL"], &[]).len(), 41);
        assert!(of(&[], &["all"]).is_empty());
        assert_eq!(of(&["net_admin", "CAP_CHOWN"], &["ALL"]), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
        assert_eq!(of(&["ALL"], &["cap_sys_admin"]).len(), 40);
        assert_eq!(of(&["SYS_TIME"], &["KILL"]).len(), 14);
        assert!(granted(&["FLY".to_owned()], &[]).unwrap_err().to_string().contains("FLY"));
    }
}
