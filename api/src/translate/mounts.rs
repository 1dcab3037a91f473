//! Volumes, folders of the host, and temporary file systems.

use std::path::Path;

use bollard_stubs::models::{MountPoint, MountPointTypeEnum};
use engine::Engine;
use engine::model::{Container, ContainerConfig, Mount, MountKind};

use super::refused::REFUSED;
use crate::error::ApiError;
use crate::fields::Fields;

/// Most mounts of one container, as many as the agent takes.
const MAX_MOUNTS: usize = 256;

/// Reads `Binds`, `Mounts`, `Tmpfs` and `VolumesFrom`.
///
/// # Errors
/// One is malformed, or needs something that host and machine do not share.
pub fn read(host: &mut Fields, config: &mut ContainerConfig, engine: &Engine) -> Result<(), ApiError> {
    config.tmpfs = host.take("Tmpfs")?;
    for text in host.take::<Vec<String>>("Binds")? {
        config.mounts.push(bind(&text)?);
    }
    for mut entry in host.objects("Mounts")? {
        mount(&mut entry, config)?;
        entry.finish(&REFUSED)?;
    }
    for text in host.take::<Vec<String>>("VolumesFrom")? {
        from(&text, config, engine)?;
    }
    for path in config.tmpfs.keys() {
        absolute(path)?;
    }
    let mut seen = std::collections::BTreeSet::new();
    for target in config.mounts.iter().map(|mount| &mount.target).chain(config.tmpfs.keys()) {
        if !seen.insert(target.trim_end_matches('/')) {
            return Err(ApiError::bad(format!("Duplicate mount point: {target}")));
        }
    }
    if seen.len() > MAX_MOUNTS {
        return Err(ApiError::bad(format!("a container has at most {MAX_MOUNTS} mounts")));
    }
    Ok(())
}

fn absolute(path: &str) -> Result<(), ApiError> {
    if path.trim_end_matches('/').is_empty() {
        return Err(ApiError::bad("invalid mount config: invalid specification: destination can't be '/'"));
    }
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(ApiError::bad(format!("invalid mount config: mount path must be absolute: '{path}'")));
    }
    Ok(())
}

/// A volume's name: as Docker's.
///
/// # Errors
/// It is not one.
pub fn volume_name(name: &str) -> Result<(), ApiError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || name.len() < 2 || name.len() > 255 || !name.bytes().all(plain) {
        return Err(ApiError::bad(format!(
            "\"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
             allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    Ok(())
}

/// `source:target[:options]`, the words of `-v`.
fn bind(text: &str) -> Result<Mount, ApiError> {
    let bad = || ApiError::bad(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(bad()),
    };
    if source.is_empty() || target.is_empty() {
        return Err(bad());
    }
    absolute(target)?;
    let kind = if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
    if kind == MountKind::Volume {
        volume_name(source)?;
    }
    let mut mount = Mount {
        kind,
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        no_copy: false,
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            "nocopy" if kind == MountKind::Volume => mount.no_copy = true,
            // Labels and caches that a machine does not have, and what is so anyway.
            "rw" | "z" | "Z" | "private" | "rprivate" | "consistent" | "cached" | "delegated" => {}
            "shared" | "rshared" | "slave" | "rslave" => return Err(propagation(option)),
            _ => return Err(ApiError::bad(format!("invalid mode: {option}"))),
        }
    }
    if kind == MountKind::Bind && !Path::new(source).exists() {
        // As Docker does for -v, and not for --mount.
        std::fs::create_dir_all(source).map_err(|e| {
            ApiError::internal(format!("error while creating mount source path '{source}': {e}"))
        })?;
    }
    Ok(mount)
}

fn propagation(option: &str) -> ApiError {
    ApiError::refused(
        &format!("bind propagation {option}"),
        "mounts of the host and mounts of a machine are different kernels' mounts",
        "leave it out",
    )
}

/// One entry of `Mounts`, the words of `--mount`.
fn mount(entry: &mut Fields, config: &mut ContainerConfig) -> Result<(), ApiError> {
    let kind: String = entry.take("Type")?;
    let (source, target): (String, String) = (entry.take("Source")?, entry.take("Target")?);
    let read_only = entry.take("ReadOnly")?;
    entry.forget(&["Consistency"]);
    absolute(&target)?;
    let invalid = |why: &str| ApiError::bad(format!("invalid mount config for type \"{kind}\": {why}"));
    match kind.as_str() {
        "bind" => {
            let mut options = entry.object("BindOptions")?;
            match options.text("Propagation")?.as_deref() {
                None | Some("private" | "rprivate") => {}
                Some(other) => return Err(propagation(other)),
            }
            let create: bool = options.take("CreateMountpoint")?;
            options.finish(&[])?;
            if !source.starts_with('/') {
                return Err(invalid(&format!("invalid mount path: '{source}' mount path must be absolute")));
            }
            if !Path::new(&source).exists() {
                if !create {
                    return Err(invalid(&format!("bind source path does not exist: {source}")));
                }
                std::fs::create_dir_all(&source).map_err(|e| {
                    ApiError::internal(format!("error while creating mount source path '{source}': {e}"))
                })?;
            }
            config.mounts.push(Mount { kind: MountKind::Bind, source, target, read_only, no_copy: false });
        }
        "volume" => {
            let mut options = entry.object("VolumeOptions")?;
            let no_copy = options.take("NoCopy")?;
            let mut driver = options.object("DriverConfig")?;
            match driver.text("Name")?.as_deref() {
                None | Some("local") => {}
                Some(other) => {
                    return Err(ApiError::refused(
                        &format!("volume driver {other}"),
                        "volumes are folders of this host",
                        "leave it out",
                    ));
                }
            }
            driver.finish(&[])?;
            options.finish(&VOLUME_OPTIONS)?;
            if !source.is_empty() {
                volume_name(&source)?;
            }
            config.mounts.push(Mount { kind: MountKind::Volume, source, target, read_only, no_copy });
        }
        "tmpfs" => {
            if !source.is_empty() {
                return Err(invalid("field Source must not be specified"));
            }
            let mut options = entry.object("TmpfsOptions")?;
            let text = tmpfs(&mut options, read_only)?;
            options.finish(&[])?;
            config.tmpfs.insert(target, text);
        }
        "image" | "npipe" | "cluster" => {
            return Err(ApiError::refused(
                &format!("--mount type={kind}"),
                "volumes, folders of the host and temporary file systems can be mounted",
                "use type=volume, type=bind or type=tmpfs",
            ));
        }
        _ => return Err(ApiError::bad(format!("mount type unknown: \"{kind}\""))),
    }
    Ok(())
}

const VOLUME_OPTIONS: [crate::fields::Refusal; 2] = [
    crate::fields::Refusal {
        field: "HostConfig.Mounts.VolumeOptions.Labels",
        option: "volume-label",
        neutral: &[],
        why: "a container does not label its volumes",
        instead: "create the volume with its labels first: docker volume create --label",
    },
    crate::fields::Refusal {
        field: "HostConfig.Mounts.VolumeOptions.Subpath",
        option: "volume-subpath",
        neutral: &[],
        why: "a volume is mounted as a whole",
        instead: "mount the volume and use the path below it",
    },
];

/// Options of a temporary file system as mount(8) takes them.
fn tmpfs(options: &mut Fields, read_only: bool) -> Result<String, ApiError> {
    let size: i64 = options.take("SizeBytes")?;
    let mode: u32 = options.take("Mode")?;
    if size < 0 {
        return Err(ApiError::bad("invalid mount config for type \"tmpfs\": size must be positive"));
    }
    let mut words = Vec::new();
    if read_only {
        words.push("ro".to_owned());
    }
    if size > 0 {
        words.push(format!("size={size}"));
    }
    if mode > 0 {
        words.push(format!("mode={mode:o}"));
    }
    for pair in options.take::<Vec<Vec<String>>>("Options")? {
        let word = pair.join("=");
        if !matches!(word.as_str(), "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev") {
            return Err(ApiError::bad(format!(
                "invalid mount config for type \"tmpfs\": unknown option {word:?}"
            )));
        }
        words.push(word);
    }
    Ok(words.join(","))
}

/// `container[:ro|rw]`: the mounts of another container, where this one has none of its own.
fn from(text: &str, config: &mut ContainerConfig, engine: &Engine) -> Result<(), ApiError> {
    let (name, read_only) = match text.split_once(':') {
        None => (text, false),
        Some((name, "ro")) => (name, true),
        Some((name, "rw" | "z" | "Z")) => (name, false),
        Some((_, mode)) => return Err(ApiError::bad(format!("invalid mode: {mode}"))),
    };
    for mut mount in engine.container(name)?.config.mounts {
        if config.mounts.iter().any(|own| own.target == mount.target) {
            continue;
        }
        mount.read_only |= read_only;
        config.mounts.push(mount);
    }
    Ok(())
}

/// Mounts in the words of `-v`, as `inspect` shows them.
#[must_use]
pub fn binds(config: &ContainerConfig) -> Option<Vec<String>> {
    let text = |mount: &Mount| {
        let mut options = Vec::new();
        options.extend(mount.read_only.then_some("ro"));
        options.extend(mount.no_copy.then_some("nocopy"));
        let options = options.join(",");
        let colon = if options.is_empty() { "" } else { ":" };
        format!("{}:{}{colon}{options}", mount.source, mount.target)
    };
    let binds: Vec<String> =
        config.mounts.iter().filter(|mount| !mount.source.is_empty()).map(text).collect();
    (!binds.is_empty()).then_some(binds)
}

/// Where a volume's files are on this host.
#[must_use]
pub fn volume_path(engine: &Engine, name: &str) -> String {
    engine.paths().volumes().join(name).join("_data").display().to_string()
}

/// Mounts as `inspect` and `ps` show them.
#[must_use]
pub fn points(container: &Container, engine: &Engine) -> Vec<MountPoint> {
    let point = |mount: &Mount| {
        let plain = MountPoint {
            destination: Some(mount.target.clone()),
            mode: Some(String::new()),
            rw: Some(!mount.read_only),
            propagation: Some(String::new()),
            ..MountPoint::default()
        };
        match mount.kind {
            MountKind::Bind => MountPoint {
                typ: Some(MountPointTypeEnum::BIND),
                source: Some(mount.source.clone()),
                propagation: Some("rprivate".into()),
                ..plain
            },
            MountKind::Volume => MountPoint {
                typ: Some(MountPointTypeEnum::VOLUME),
                name: Some(mount.source.clone()),
                source: Some(volume_path(engine, &mount.source)),
                driver: Some("local".into()),
                ..plain
            },
        }
    };
    container.config.mounts.iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_v() {
        let read = |text: &str| bind(text);
        let mount = read("data:/data:ro,nocopy").unwrap();
        assert_eq!((mount.kind, mount.read_only, mount.no_copy), (MountKind::Volume, true, true));
        assert_eq!(read("/:/host:z").unwrap().kind, MountKind::Bind);
        for bad in [
            "",
            "a",
            ":/x",
            "data:",
            "data:x",
            "data:/",
            "data:/x:foo",
            "a/b:/x",
            "data:/x:ro:rw",
            "data:/../x",
            "/:/x:nocopy",
        ] {
            assert_eq!(read(bad).unwrap_err().status, 400, "{bad}");
        }
        assert!(
            read("data:/x:rshared").unwrap_err().body.message.starts_with("bind propagation rshared cannot")
        );
    }

    #[test]
    fn words_of_mount() {
        let read = |json: &str| {
            let mut config = ContainerConfig::default();
            let mut fields = Fields::new(serde_json::from_str(json).unwrap());
            mount(&mut fields, &mut config).and_then(|()| fields.finish(&REFUSED)).map(|()| config)
        };
        let config =
            read(r#"{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":4096,"Mode":448}}"#).unwrap();
        assert_eq!(config.tmpfs["/t"], "size=4096,mode=700");
        let config = read(r#"{"Type":"volume","Source":"v1","Target":"/t","VolumeOptions":{"NoCopy":true,"DriverConfig":{}}}"#).unwrap();
        assert!(config.mounts[0].no_copy);
        let missing = r#"{"Type":"bind","Source":"/does/not/exist","Target":"/t"}"#;
        assert!(
            read(missing)
                .unwrap_err()
                .body
                .message
                .contains("bind source path does not exist: /does/not/exist")
        );
        for bad in [
            r#"{"Type":"bind","Source":"x","Target":"/t"}"#,
            r#"{"Type":"volume","Source":"x","Target":"t"}"#,
            r#"{"Type":"image","Source":"x","Target":"/t"}"#,
            r#"{"Type":"volume","Source":"vv","Target":"/t","VolumeOptions":{"Subpath":"a"}}"#,
            r#"{"Type":"bind","Source":"/","Target":"/t","BindOptions":{"Propagation":"shared"}}"#,
            r#"{"Type":"bind","Source":"/","Target":"/t","New":1}"#,
            r#"{"Type":"x","Target":"/t"}"#,
        ] {
            assert_eq!(read(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
