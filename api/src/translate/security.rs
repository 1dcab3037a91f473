//! Capabilities, privileges, system call filters, hidden paths.

use engine::model::ContainerConfig;
use engine::seccomp::Seccomp;

use crate::error::ApiError;
use crate::fields::Fields;

/// Most bytes of a seccomp profile.
const MAX_PROFILE: usize = 1 << 20;

/// Reads what a `HostConfig` says about privileges.
///
/// # Errors
/// A name is not one, or asks for something that a machine does not have.
pub fn read(host: &mut Fields, config: &mut ContainerConfig) -> Result<(), ApiError> {
    config.cap_add = capabilities(&host.take::<Vec<String>>("CapAdd")?)?;
    config.cap_drop = capabilities(&host.take::<Vec<String>>("CapDrop")?)?;
    config.masked_paths = host.take("MaskedPaths")?;
    config.readonly_paths = host.take("ReadonlyPaths")?;
    for option in host.take::<Vec<String>>("SecurityOpt")? {
        security(&option, config)?;
    }
    Ok(())
}

fn capabilities(names: &[String]) -> Result<Vec<String>, ApiError> {
    names.iter().map(|name| Ok(engine::spec::capability(name)?)).collect()
}

fn security(option: &str, config: &mut ContainerConfig) -> Result<(), ApiError> {
    let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
    let refused =
        |why: &str, next: &str| Err(ApiError::refused(&format!("--security-opt {option:.64}"), why, next));
    match (name, value) {
        ("no-new-privileges", "" | "true") => config.no_new_privileges = true,
        ("no-new-privileges", "false") => config.no_new_privileges = false,
        ("seccomp", "unconfined") => config.seccomp = Seccomp::Unconfined,
        ("seccomp", "builtin") => config.seccomp = Seccomp::Default,
        ("seccomp", profile) => {
            let json = profile.len() <= MAX_PROFILE
                && serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(profile).is_ok();
            if !json {
                return Err(ApiError::bad(format!(
                    "Decoding seccomp profile failed: it is not a JSON object of at most {MAX_PROFILE} bytes"
                )));
            }
            config.seccomp = Seccomp::Profile(profile.to_owned());
        }
        // What these ask for is so: a guest's kernel has no security module that could confine or label.
        ("apparmor", "unconfined") | ("label", "disable") => {}
        ("apparmor" | "label", _) => {
            return refused(
                "a guest's kernel has no AppArmor and no SELinux",
                "leave it out: the wall is the machine",
            );
        }
        _ => return refused("there is no security option of that name", "use seccomp or no-new-privileges"),
    }
    Ok(())
}

/// Security options as `inspect` shows them.
#[must_use]
pub fn options(config: &ContainerConfig) -> Option<Vec<String>> {
    let mut options = Vec::new();
    if config.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    match &config.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => options.push("seccomp=unconfined".to_owned()),
        Seccomp::Profile(profile) => options.push(format!("seccomp={profile}")),
    }
    (!options.is_empty()).then_some(options)
}
