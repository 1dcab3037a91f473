//! `export` and `commit`: what a container wrote, as an archive or as an image.

use api::client::{Client, Target};
use clap::Args;
use serde_json::{Value, json};

use super::common::text;
use super::images::name_and_tag;
use super::transfer::{check_output, write_stream};
use crate::complete;
use crate::failure::Failure;
use crate::output;

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// File to write in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

/// Options of `commit`.
#[derive(Debug, Args)]
pub struct Commit {
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// Instruction of a Dockerfile to apply, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Comment
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Pause the container meanwhile
    #[arg(short, long, value_name = "YES", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

pub async fn export(client: &Client, args: &Export) -> Result<u8, Failure> {
    check_output(args.output.as_deref())?;
    let (_, stream) = client.download(&Target::new(["containers", &args.container, "export"])).await?;
    write_stream(stream, args.output.as_deref()).await?;
    Ok(0)
}

pub async fn commit(client: &Client, args: &Commit) -> Result<u8, Failure> {
    let name = args.name.as_deref();
    let (name, tag) = match name.map(|name| name_and_tag(name).ok_or(name)) {
        None => (None, None),
        Some(Ok((name, tag))) => (Some(name), Some(tag)),
        Some(Err(name)) => (Some(name.to_owned()), None),
    };
    let mut target = Target::new(["commit"])
        .with("container", &args.container)
        .with("pause", u8::from(args.pause))
        .with_some("repo", name)
        .with_some("tag", tag)
        .with_some("comment", args.message.as_deref())
        .with_some("author", args.author.as_deref());
    for change in &args.change {
        target = target.with("changes", change);
    }
    let made: Value = client.post(&target, &json!({})).await?;
    output::line(&text(&made["Id"]));
    Ok(0)
}
