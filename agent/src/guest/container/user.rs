//! `user[:group]` as Docker reads it, against the container's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read;

/// Most bytes read of either file; the image wrote them.
const MAX_FILE: u64 = 4 << 20;

/// Most memberships that count.
const MAX_GROUPS: usize = 1024;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// Home directory, for HOME.
    pub(super) home: String,
}

/// Looks a user up in the files of the current root; `extra` are further groups, by name or number.
pub(crate) fn resolve(user: &str, extra: &[String]) -> Result<Identity, String> {
    let group = read_bounded("/etc/group");
    let mut identity = resolve_in(user, &read_bounded("/etc/passwd"), &group)?;
    for name in extra {
        let id = find_group(name, &group)?;
        if !identity.groups.contains(&id) {
            identity.groups.push(id);
        }
    }
    Ok(identity)
}

/// An absent or unreadable file holds no users.
fn read_bounded(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    group
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 4 && fields[0] == wanted)
        .and_then(|fields| fields[2].parse().ok())
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file"))
}

fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6 && (fields[0] == name || (number.is_some() && fields[2].parse().ok() == number))
    });
    let from_entry = |field: usize| entry.as_ref().and_then(|fields| fields[field].parse::<u32>().ok());
    let uid = from_entry(2)
        .or(number)
        .ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?;
    let home =
        entry.as_ref().map(|fields| fields[5]).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();

    let groups =
        || group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4);
    let gid = match group_name.filter(|g| !g.is_empty()) {
        None => from_entry(3).unwrap_or(0),
        Some(wanted) => find_group(wanted, group)?,
    };
    // An explicit group replaces the memberships; the primary group is always among them, as with Docker.
    let user_name = entry.as_ref().map_or(name, |fields| fields[0]);
    let mut supplementary = vec![gid];
    if group_name.is_none() {
        let member = groups()
            .filter(|fields| fields[3].split(',').any(|member| member == user_name))
            .filter_map(|fields| fields[2].parse::<u32>().ok());
        supplementary.extend(member.filter(|id| *id != gid).take(MAX_GROUPS));
    }
    Ok(Identity { uid, gid, groups: supplementary, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\nbad:x:x:y::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nbroken\n";

    #[test]
    fn names_numbers_and_groups() {
        let app = Identity { uid: 1000, gid: 1001, groups: vec![1001, 50], home: "/home/app".into() };
        for user in ["app", "1000"] {
            assert_eq!(resolve_in(user, PASSWD, GROUP).unwrap(), app);
        }
        for user in ["", "0", "root", "0:0"] {
            let root = resolve_in(user, PASSWD, GROUP).unwrap();
            assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        }
        let explicit = resolve_in("app:staff", PASSWD, GROUP).unwrap();
        assert_eq!((explicit.gid, explicit.groups), (50, vec![50]));
        let unknown_number = resolve_in("4242:77", PASSWD, GROUP).unwrap();
        assert_eq!((unknown_number.uid, unknown_number.gid, unknown_number.home.as_str()), (4242, 77, "/"));
    }

    #[test]
    fn unknown_and_hostile_names_are_refused() {
        for user in ["nobody-here", "app:nogroup", "-1", "4294967296", "broken", "bad"] {
            assert!(resolve_in(user, PASSWD, GROUP).is_err(), "{user}");
        }
    }
}
