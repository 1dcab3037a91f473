//! `create`, and what `run` shares with it: the image is fetched if it is missing.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use api::client::{Client, ClientError, Target};
use clap::Args;
use serde_json::Value;

use super::transfer;
use crate::complete;
use crate::failure::Failure;
use crate::options::config::streams;
use crate::options::{self, ContainerFlags, image_name};
use crate::output;

/// Not found.
const NOT_FOUND: u16 = 404;

/// Options of `create`.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "bulkhead create [OPTIONS] IMAGE [COMMAND] [ARGUMENT]..."
)]
pub struct Create {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: ContainerFlags,
    /// The image, then the command
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true, add = complete::images())]
    image_and_command: Vec<String>,
}

pub async fn execute(client: &Client, args: &Create) -> Result<u8, Failure> {
    let (image, command) = split(&args.image_and_command);
    let wanted = streams(&args.flags, false)?;
    let body = options::body(&args.flags, image, command, wanted)?;
    let id = create(client, &args.flags, &Image::of(&args.flags, image), &body).await?;
    output::line(&id);
    Ok(0)
}

/// The image of a new container.
pub struct Image<'a> {
    name: String,
    platform: Option<&'a str>,
    quiet: bool,
}

impl<'a> Image<'a> {
    /// As the flags and the command line say.
    pub fn of(flags: &'a ContainerFlags, name: &str) -> Self {
        Self { name: image_name(name), platform: flags.platform.as_deref(), quiet: flags.quiet }
    }

    async fn pull(&self, client: &Client) -> Result<(), Failure> {
        transfer::fetch(client, &self.name, self.platform, self.quiet).await
    }
}

/// The image and the command.
pub fn split(words: &[String]) -> (&str, &[String]) {
    words.split_first().map_or(("", &[]), |(image, command)| (image.as_str(), command))
}

/// Creates a container, and returns its id.
///
/// # Errors
/// The image cannot be had, or the server refuses.
pub async fn create(
    client: &Client,
    flags: &ContainerFlags,
    image: &Image<'_>,
    body: &Value,
) -> Result<String, Failure> {
    if !matches!(flags.pull.as_str(), "always" | "missing" | "never") {
        let why = "there is no such time to pull";
        return Err(Failure::option("--pull", &flags.pull, why, "use always, missing or never"));
    }
    let id_file = flags.cidfile.as_deref().map(Path::new);
    if let Some(path) = id_file.filter(|path| path.exists()) {
        let why = "the file exists: another container may be running";
        return Err(Failure::option("--cidfile", &path.display().to_string(), why, "remove the file"));
    }
    if flags.pull == "always" {
        image.pull(client).await?;
    }
    let target = Target::new(["containers", "create"])
        .with_some("name", flags.name.as_deref())
        .with_some("platform", flags.platform.as_deref());
    let mut answer = client.post::<Value>(&target, body).await;
    if flags.pull == "missing" && answer.as_ref().is_err_and(no_image) {
        image.pull(client).await?;
        answer = client.post(&target, body).await;
    }
    let answer = answer?;
    let warnings = answer["Warnings"].as_array().into_iter().flatten();
    for line in warnings.chain([&answer["Notice"]]).filter_map(Value::as_str) {
        eprintln!("bulkhead: {line}");
    }
    let id = answer["Id"].as_str().ok_or_else(|| Failure::answer("a container was created without an id"))?;
    if let Some(path) = id_file {
        let write = || fs::File::create_new(path)?.write_all(id.as_bytes());
        write().map_err(Failure::io(format!("writing {}", path.display())))?;
    }
    Ok(id.to_owned())
}

fn no_image(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { status, body } => {
            status.as_u16() == NOT_FOUND && body.message.starts_with("No such image")
        }
        _ => false,
    }
}
