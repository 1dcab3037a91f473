//! Images that come and go: `pull`, `push`, `load`, `save`, `import`.

use std::io::{self, IsTerminal};
use std::path::Path;

use api::client::{Client, JsonLines, Method, Target};
use clap::Args;
use image_unpack::{DockerConfig, Reference};
use serde_json::Value;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWriteExt};

use super::common::text;
use super::images::name_and_tag;
use crate::complete;
use crate::failure::Failure;
use crate::options::image_name;
use crate::output;
use crate::progress::Progress;

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// Platform, such as linux/amd64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Do not tell what happens
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Options of `push`.
#[derive(Debug, Args)]
pub struct Push {
    /// Do not tell what happens
    #[arg(short, long)]
    quiet: bool,
    /// The image, by the name that it is to have in its registry
    #[arg(value_name = "NAME[:TAG]", add = complete::images())]
    image: String,
}

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// File to read in place of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// Platform of several, such as linux/amd64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Do not tell what happens
    #[arg(short, long)]
    quiet: bool,
}

/// Options of `save`.
#[derive(Debug, Args)]
pub struct Save {
    /// File to write in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE", add = complete::images())]
    images: Vec<String>,
}

/// Options of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Instruction of a Dockerfile to apply, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Comment
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Platform, such as linux/amd64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// A tar file, or - for standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

pub async fn pull(client: &Client, args: &Pull) -> Result<u8, Failure> {
    let name = image_name(&args.image);
    fetch(client, &name, args.platform.as_deref(), args.quiet).await?;
    // As Docker says it: the whole name.
    output::line(&name.parse::<Reference>().map_or(name, |reference| reference.to_string()));
    Ok(0)
}

/// Pulls an image; what happens is told on standard error.
///
/// # Errors
/// The name is malformed, or the image cannot be fetched.
pub async fn fetch(client: &Client, name: &str, platform: Option<&str>, quiet: bool) -> Result<(), Failure> {
    let target = Target::new(["images", "create"]).with("fromImage", name).with_some("platform", platform);
    let target = if tagged(name) { target } else { target.with("tag", "latest") };
    let lines = authorized(client, name)?.lines::<Value>(Method::POST, &target).await?;
    follow(lines, quiet).await.map(drop)
}

/// Shows progress to its end; returns what the server said as text.
async fn follow(mut lines: JsonLines<Value>, quiet: bool) -> Result<Vec<Value>, Failure> {
    let mut progress = Progress::new(quiet);
    let mut said = Vec::new();
    while let Some(line) = lines.next().await? {
        progress.show(&line);
        if line["stream"].is_string() || line["aux"].is_object() || line["status"].is_string() {
            said.push(line);
        }
    }
    Ok(said)
}

/// Whether a name says which of several it means; a file's name does.
fn tagged(name: &str) -> bool {
    match name.parse::<image_unpack::Source>() {
        Ok(image_unpack::Source::Registry(reference)) => {
            reference.digest().is_some() || reference.tag().is_some()
        }
        // The server tells what is wrong with it.
        _ => true,
    }
}

/// A client that shows the credentials of the caller for an image's registry, if there are some.
fn authorized(client: &Client, name: &str) -> Result<Client, Failure> {
    let Ok(reference) = name.parse::<Reference>() else { return Ok(client.clone()) };
    let stored = DockerConfig::of_user().map(|config| config.get(reference.registry())).transpose();
    let stored = stored
        .map_err(|source| engine::EngineError::Image { name: name.to_owned(), source: Box::new(source) })?;
    let Some(credentials) = stored.flatten() else { return Ok(client.clone()) };
    let header = api::client::registry_auth(&credentials);
    Ok(client.clone().with_header("X-Registry-Auth", &header)?)
}

pub async fn push(client: &Client, args: &Push) -> Result<u8, Failure> {
    let (name, tag) = name_and_tag(&args.image).unwrap_or_else(|| (args.image.clone(), "latest".to_owned()));
    let target = Target::new(["images", &name, "push"]).with("tag", &tag);
    // A push without credentials has the header all the same: an empty object.
    let client = authorized(client, &args.image)?;
    let said = follow(client.lines(Method::POST, &target).await?, args.quiet).await?;
    let pushed = said.iter().filter_map(|line| line["aux"]["Digest"].as_str()).next_back();
    output::line(&match pushed {
        Some(digest) if !args.quiet => format!("{tag}: digest: {digest}"),
        _ => format!("{name}:{tag}"),
    });
    Ok(0)
}

pub async fn load(client: &Client, args: &Load) -> Result<u8, Failure> {
    let target = Target::new(["images", "load"])
        .with("quiet", u8::from(args.quiet))
        .with_some("platform", args.platform.as_deref());
    let lines = match &args.input {
        Some(path) => client.upload(Method::POST, &target, open(path).await?).await?,
        None => client.upload(Method::POST, &target, standard_input()?).await?,
    };
    for line in follow(lines, args.quiet).await? {
        output::write(text(&line["stream"]).as_bytes());
    }
    Ok(0)
}

pub async fn save(client: &Client, args: &Save) -> Result<u8, Failure> {
    let mut target = Target::new(["images", "get"]);
    for name in &args.images {
        target = target.with("names", name);
    }
    check_output(args.output.as_deref())?;
    let (_, stream) = client.download(&target).await?;
    write_stream(stream, args.output.as_deref()).await?;
    Ok(0)
}

pub async fn import(client: &Client, args: &Import) -> Result<u8, Failure> {
    let name = args
        .name
        .as_deref()
        .map(|name| name_and_tag(name).unwrap_or_else(|| (name.to_owned(), "latest".into())));
    let mut target = Target::new(["images", "create"])
        .with("fromSrc", "-")
        .with_some("repo", name.as_ref().map(|(name, _)| name))
        .with_some("tag", name.as_ref().map(|(_, tag)| tag))
        .with_some("message", args.message.as_deref())
        .with_some("platform", args.platform.as_deref());
    for change in &args.change {
        target = target.with("changes", change);
    }
    let lines = match args.file.as_str() {
        "-" => client.upload(Method::POST, &target, standard_input()?).await?,
        path => client.upload(Method::POST, &target, open(path).await?).await?,
    };
    let said = follow(lines, true).await?;
    if let Some(id) = said.iter().filter_map(|line| line["status"].as_str()).next_back() {
        output::line(id);
    }
    Ok(0)
}

async fn open(path: &str) -> Result<File, Failure> {
    File::open(path).await.map_err(Failure::io(format!("opening {path}")))
}

/// Standard input, which is to be a file or a pipe.
fn standard_input() -> Result<tokio::io::Stdin, Failure> {
    if io::stdin().is_terminal() {
        let next = "redirect a file to it, or name one";
        return Err(Failure::option("-", "", "standard input is a terminal", next));
    }
    Ok(tokio::io::stdin())
}

/// An archive's bytes are not for a terminal.
///
/// # Errors
/// They would go to one.
pub fn check_output(path: Option<&str>) -> Result<(), Failure> {
    if path.is_none() && io::stdout().is_terminal() {
        let next = "redirect it, or name a file with --output";
        return Err(Failure::option("--output", "", "standard output is a terminal", next));
    }
    Ok(())
}

/// Writes what the server sends to a file, which is there only when all of it is, or to standard output.
///
/// # Errors
/// The stream breaks off, or the disk is full.
pub async fn write_stream(mut stream: impl AsyncRead + Unpin, path: Option<&str>) -> Result<(), Failure> {
    let Some(path) = path else {
        let mut stdout = tokio::io::stdout();
        let copied = tokio::io::copy(&mut stream, &mut stdout).await;
        return copied.and(stdout.flush().await).map_err(Failure::io("writing to standard output"));
    };
    let action = format!("writing {path}");
    // A device or a pipe is written as it is.
    let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let aside = if special { path.to_owned() } else { format!("{path}.{}.tmp", std::process::id()) };
    let write = async {
        let mut file = File::create(&aside).await?;
        tokio::io::copy(&mut stream, &mut file).await?;
        file.flush().await?;
        if special { Ok(()) } else { tokio::fs::rename(&aside, path).await }
    };
    let written = write.await;
    if written.is_err() && !special {
        let _ = std::fs::remove_file(Path::new(&aside));
    }
    written.map_err(Failure::io(action))
}
