//! `cp`: files between a container and here.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use api::client::{Client, ClientError, Method, Target};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;
use tokio_util::io::SyncIoBridge;

use super::common::text;
use super::transfer::{check_output, write_stream};
use crate::archive;
use crate::complete;
use crate::failure::Failure;
use crate::progress::size;

/// Header that tells of a path in a container.
const STAT: &str = "x-docker-container-path-stat";
/// Kinds of files as Go writes them.
const DIRECTORY: u64 = 1 << 31;
const LINK: u64 = 1 << 27;
/// Bytes that wait between packing and sending.
const PIPE: usize = 256 << 10;

/// Options of `cp`.
#[derive(Debug, Args)]
#[command(
    override_usage = "bulkhead cp [OPTIONS] CONTAINER:PATH PATH|-\n       bulkhead cp [OPTIONS] PATH|- CONTAINER:PATH"
)]
pub struct Cp {
    /// Keep whom the files belong to
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not tell what was copied
    #[arg(short, long)]
    quiet: bool,
    /// What to copy: CONTAINER:PATH, PATH, or - for an archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true, add = complete::containers())]
    source: String,
    /// Where to: PATH, - for an archive on standard output, or CONTAINER:PATH
    #[arg(value_name = "TARGET", allow_hyphen_values = true, add = complete::containers())]
    target: String,
}

/// `NAME:PATH`; `None` for a path here: one that begins with `/` or `.`, or has no colon.
fn in_container(text: &str) -> Option<(&str, &str)> {
    let (name, path) = text.split_once(':')?;
    (!name.is_empty() && !name.starts_with(['/', '.']) && !name.contains('/')).then_some((name, path))
}

pub async fn execute(client: &Client, args: &Cp) -> Result<u8, Failure> {
    let bytes = match (in_container(&args.source), in_container(&args.target)) {
        (Some((name, path)), None) => from(client, args, name, path).await?,
        (None, Some((name, path))) => to(client, args, name, path).await?,
        (Some(_), Some(_)) => {
            let why = "both sides are containers";
            return Err(Failure::option("cp", "", why, "copy to a folder here first"));
        }
        (None, None) => {
            let why = "neither side is a container";
            return Err(Failure::option("cp", "", why, "write one of them as CONTAINER:PATH"));
        }
    };
    if let Some(bytes) = bytes.filter(|_| !args.quiet) {
        eprintln!("Successfully copied {} to {}", size(bytes), args.target);
    }
    Ok(0)
}

/// A path in a container.
struct Stat {
    mode: u64,
    link: String,
}

impl Stat {
    fn is(&self, kind: u64) -> bool {
        self.mode & kind != 0
    }
}

async fn stat(client: &Client, name: &str, path: &str) -> Result<Stat, ClientError> {
    let target = Target::new(["containers", name, "archive"]).with("path", path);
    let headers = match client.head(&target).await {
        Ok(headers) => headers,
        // An answer to HEAD has no words; the same question with GET has.
        Err(_) => client.download(&target).await?.0,
    };
    let told = headers.get(STAT).and_then(|header| STANDARD.decode(header.as_bytes()).ok());
    let told: Option<Value> = told.and_then(|json| serde_json::from_slice(&json).ok());
    let told = told.ok_or_else(|| ClientError::Protocol("nothing was told of the path".to_owned()))?;
    Ok(Stat { mode: told["mode"].as_u64().unwrap_or(0), link: text(&told["linkTarget"]) })
}

/// Whether a path means what is in a directory: it ends in `/.`.
fn contents(path: &str) -> (bool, &str) {
    match path.strip_suffix("/.") {
        Some(directory) => (true, if directory.is_empty() { "/" } else { directory }),
        None if path == "." => (true, "."),
        None => (false, path),
    }
}

/// What a link in a container leads to, from the container's root.
fn followed(path: &str, link: &str) -> String {
    if link.starts_with('/') {
        return link.to_owned();
    }
    let above = path.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
    format!("{above}/{link}")
}

async fn from(client: &Client, args: &Cp, name: &str, path: &str) -> Result<Option<u64>, Failure> {
    let (contents, path) = contents(path);
    let mut path = path.to_owned();
    let mut source = stat(client, name, &path).await?;
    if args.follow_link && source.is(LINK) {
        path = followed(&path, &source.link);
        source = stat(client, name, &path).await?;
    }
    let archive = Target::new(["containers", name, "archive"]).with("path", &path);
    if args.target == "-" {
        check_output(None)?;
        let (_, stream) = client.download(&archive).await?;
        write_stream(stream, None).await?;
        return Ok(None);
    }
    let base = Path::new(path.trim_end_matches('/')).file_name().map(PathBuf::from);
    let target = here(&args.target, base, source.is(DIRECTORY), contents)?;
    let (_, stream) = client.download(&archive).await?;
    let (stream, owners) = (SyncIoBridge::new(stream), args.archive);
    let unpacked = tokio::task::spawn_blocking(move || archive::unpack(stream, &target, owners)).await;
    let action = format!("copying to {}", args.target);
    unpacked.map_err(|e| Failure::answer(e.to_string()))?.map(Some).map_err(Failure::io(action))
}

/// Where files go here, as cp(1) has it.
fn here(
    target: &str,
    base: Option<PathBuf>,
    directory: bool,
    contents: bool,
) -> Result<archive::Target, Failure> {
    let path = Path::new(target);
    let wrong = |why: &str| Failure::option("cp", target, why, "make the folder, or name another place");
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            let name = if contents { None } else { base };
            Ok(archive::Target { directory: path.to_owned(), name })
        }
        Ok(_) if directory => Err(wrong("a directory cannot be copied to a file")),
        Err(_) if target.ends_with('/') && !directory => Err(wrong("there is no such directory")),
        _ => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !above.is_dir() {
                return Err(wrong("the directory that it would be in is not there"));
            }
            let name = path.file_name().map(PathBuf::from).ok_or_else(|| wrong("it has no name"))?;
            Ok(archive::Target { directory: above.to_owned(), name: Some(name) })
        }
    }
}

async fn to(client: &Client, args: &Cp, name: &str, path: &str) -> Result<Option<u64>, Failure> {
    if args.source == "-" {
        if io::stdin().is_terminal() {
            let next = "redirect an archive to it";
            return Err(Failure::option("cp", "-", "standard input is a terminal", next));
        }
        let target = Target::new(["containers", name, "archive"]).with("path", path);
        client.upload::<Value>(Method::PUT, &target, tokio::io::stdin()).await?;
        return Ok(None);
    }
    let (contents, source) = contents(&args.source);
    let source = PathBuf::from(source);
    let wrong =
        |why: String| Failure::option("cp", &args.source, why, "see that it is there and may be read");
    let metadata = std::fs::symlink_metadata(&source).map_err(|e| wrong(e.to_string()))?;
    let follow = args.follow_link && metadata.is_symlink();
    // A path that ends in a slash, or means what is inside, is a directory's whatever leads to it.
    let full = std::fs::canonicalize(&source);
    let real = if follow || contents {
        full.as_ref().map_err(|e| wrong(e.to_string()))?.clone()
    } else {
        source.clone()
    };
    let directory = std::fs::symlink_metadata(&real).map_err(|e| wrong(e.to_string()))?.is_dir();
    let base = source.file_name().map(PathBuf::from).or_else(|| full.ok()?.file_name().map(PathBuf::from));
    let (parent, entry) = there(client, name, path, directory, contents, base).await?;
    let (near, far) = tokio::io::duplex(PIPE);
    let (sink, owners) = (SyncIoBridge::new(near), args.archive);
    let packing = tokio::task::spawn_blocking(move || archive::pack(&real, &entry, owners, sink));
    let target = Target::new(["containers", name, "archive"])
        .with("path", &parent)
        .with("noOverwriteDirNonDir", 1)
        .with("copyUIDGID", u8::from(args.archive));
    let sent = client.upload::<Value>(Method::PUT, &target, far).await;
    let packed = packing.await.map_err(|e| Failure::answer(e.to_string()))?;
    match (sent, packed) {
        (Ok(_), Ok(bytes)) => Ok(Some(bytes)),
        // A server that has said no does not read the rest.
        (Err(refused), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(refused.into()),
        (_, Err(error)) => Err(Failure::io(format!("reading {}", args.source))(error)),
        (Err(refused), Ok(_)) => Err(refused.into()),
    }
}

/// The directory in the container in which the archive is unpacked, and the name of its first part.
async fn there(
    client: &Client,
    name: &str,
    path: &str,
    directory: bool,
    contents: bool,
    base: Option<PathBuf>,
) -> Result<(String, PathBuf), Failure> {
    let wrong = |why: &str| {
        Failure::option("cp", &format!("{name}:{path}"), why, "make the folder, or name another place")
    };
    let path = if path.is_empty() { "/" } else { path };
    let mut path = path.to_owned();
    let mut found = match stat(client, name, &path).await {
        Ok(stat) => Some(stat),
        Err(error) if error.status() == Some(404) && error.to_string().starts_with("Could not find") => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(link) = found.as_ref().filter(|stat| stat.is(LINK)) {
        path = followed(&path, &link.link);
        found = stat(client, name, &path).await.ok();
    }
    match found {
        Some(stat) if stat.is(DIRECTORY) => {
            let entry = if contents { PathBuf::from(".") } else { base.unwrap_or_else(|| ".".into()) };
            return Ok((path, entry));
        }
        Some(_) if directory => return Err(wrong("a directory cannot be copied to a file")),
        None if path.ends_with('/') && !directory => return Err(wrong("there is no such directory")),
        _ => {}
    }
    let trimmed = path.trim_end_matches('/');
    let (above, last) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    if last.is_empty() {
        return Err(wrong("it has no name"));
    }
    Ok((if above.is_empty() { "/".to_owned() } else { above.to_owned() }, last.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_a_name_means_a_container() {
        assert_eq!(in_container("web:/etc"), Some(("web", "/etc")));
        for here in ["/a:b", "./a:b", "a", "a/b:c", ":/x"] {
            assert_eq!(in_container(here), None, "{here}");
        }
        assert_eq!(contents("/etc/."), (true, "/etc"));
        assert_eq!(contents("/."), (true, "/"));
        assert_eq!(contents("/etc"), (false, "/etc"));
        assert_eq!(followed("/a/link", "b"), "/a/b");
        assert_eq!(followed("/link", "/b"), "/b");
    }

    #[test]
    fn targets_are_found_as_cp_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let base = || Some(PathBuf::from("etc"));
        let into = here(&directory.path().display().to_string(), base(), true, false).unwrap();
        assert_eq!(into.name, base());
        assert_eq!(here(&directory.path().display().to_string(), base(), true, true).unwrap().name, None);
        assert_eq!(here(&path("new"), base(), true, false).unwrap().name, Some("new".into()));
        assert_eq!(here(&path("file"), base(), false, false).unwrap().name, Some("file".into()));
        assert!(here(&path("file"), base(), true, false).is_err());
        assert!(here(&path("new/"), base(), false, false).is_err());
        assert!(here(&path("no/new"), base(), false, false).is_err());
    }
}
