//! Volumes, folders of the host and temporary file systems: `-v`, `--mount`, `--tmpfs`.

use serde_json::{Value, json};

use super::config::{absolute, object};
use super::flags::FileFlags;
use super::values::{Object, bytes, fields, pairs};
use crate::failure::Failure;

/// Puts them into a `HostConfig`.
///
/// # Errors
/// One is malformed.
pub fn set(flags: &FileFlags, host: &mut Object) -> Result<(), Failure> {
    let binds: Vec<String> = flags.volume.iter().filter(|text| text.contains(':')).map(|t| bind(t)).collect();
    host.set("Binds", binds);
    let mounts: Result<Vec<Value>, _> = flags.mount.iter().map(|text| mount(text)).collect();
    host.set("Mounts", mounts?);
    host.set("VolumesFrom", flags.volumes_from.clone());
    let tmpfs = |text: &String| {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        (path.to_owned(), options.to_owned())
    };
    host.set("Tmpfs", object(flags.tmpfs.iter().map(tmpfs)));
    host.set("ReadonlyRootfs", flags.read_only);
    if let Some(text) = &flags.shm_size {
        host.set("ShmSize", bytes("--shm-size", text)?);
    }
    host.set("StorageOpt", object(pairs("--storage-opt", &flags.storage_opt)?));
    Ok(())
}

/// Targets of `-v` that name no source: volumes without a name.
pub fn anonymous(volumes: &[String]) -> Value {
    Value::Object(volumes.iter().filter(|t| !t.contains(':')).map(|t| (t.clone(), json!({}))).collect())
}

/// `-v` for a server that runs in another directory: a folder's path is absolute.
fn bind(text: &str) -> String {
    let (source, rest) = text.split_once(':').unwrap_or((text, ""));
    let relative = matches!(source, "." | "..") || source.starts_with("./") || source.starts_with("../");
    if relative { format!("{}:{rest}", absolute(source)) } else { text.to_owned() }
}

/// One `--mount`.
fn mount(text: &str) -> Result<Value, Failure> {
    let bad = |why: &str| Failure::option("--mount", text, why, "write type=bind,source=/a,target=/b");
    let mut mount = Object::default();
    let (mut kind, mut volume, mut bind, mut tmpfs) =
        ("volume".to_owned(), Object::default(), Object::default(), Object::default());
    let (mut source, mut target) = (None, false);
    for (name, value) in fields("--mount", text)? {
        let flag = || match value.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(bad(&format!("{name} is either true or false"))),
        };
        let given = || value.clone().ok_or_else(|| bad(&format!("{name} has no value")));
        match name.as_str() {
            "type" => kind = given()?.to_ascii_lowercase(),
            "source" | "src" => source = Some(given()?),
            "target" | "dst" | "destination" => {
                target = true;
                mount.set("Target", given()?);
            }
            "readonly" | "ro" => mount.set("ReadOnly", flag()?),
            "consistency" => mount.set("Consistency", given()?),
            "bind-propagation" => bind.set("Propagation", given()?),
            "bind-create-src" | "create-mountpoint" => bind.set("CreateMountpoint", flag()?),
            "volume-nocopy" => volume.set("NoCopy", flag()?),
            "volume-driver" => volume.set("DriverConfig", json!({ "Name": given()? })),
            "volume-subpath" => volume.set("Subpath", given()?),
            "tmpfs-size" => tmpfs.set("SizeBytes", bytes("tmpfs-size", &given()?)?),
            "tmpfs-mode" => {
                let mode =
                    u32::from_str_radix(&given()?, 8).map_err(|_| bad("tmpfs-mode is no octal number"))?;
                tmpfs.set("Mode", mode);
            }
            other => return Err(bad(&format!("there is no field {other}"))),
        }
    }
    if !target {
        return Err(bad("it has no target"));
    }
    let source = source.map(|path| if kind == "bind" { absolute(&path) } else { path });
    mount.set("Source", source);
    mount.set("Type", kind);
    mount.set("BindOptions", bind);
    mount.set("VolumeOptions", volume);
    mount.set("TmpfsOptions", tmpfs);
    Ok(mount.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_absolute_and_names_stay() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(bind("./a:/b:ro"), format!("{}/a:/b:ro", here.display()));
        assert_eq!(bind(".:/b"), format!("{}:/b", here.display()));
        assert_eq!(bind("/a:/b"), "/a:/b");
        assert_eq!(bind("data:/b"), "data:/b");
        assert_eq!(anonymous(&["/data".into(), "a:/b".into()]), json!({ "/data": {} }));
    }

    #[test]
    fn words_of_mount() {
        let read = mount("type=bind,src=/a,dst=/b,ro").unwrap();
        assert_eq!(read, json!({ "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true }));
        let read = mount("source=v,target=/b,volume-nocopy").unwrap();
        assert_eq!(read["VolumeOptions"]["NoCopy"], true);
        let read = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        assert_eq!(read["TmpfsOptions"], json!({ "SizeBytes": 1 << 20, "Mode": 0o700 }));
        for text in
            ["type=bind", "target=/b,ro=maybe", "target=/b,what=x", "target", "target=/b,tmpfs-mode=9"]
        {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
