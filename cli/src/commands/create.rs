//! `create`, and what `run` shares with it: the image is fetched if it is missing.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use api::client::{Client, ClientError, Target};
use serde_json::Value;

use super::pull;
use crate::failure::Failure;
use crate::options::{ContainerFlags, image_name};

/// Not found.
const NOT_FOUND: u16 = 404;

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
        pull::pull(client, &self.name, self.platform, self.quiet).await
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
    for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("bulkhead: {warning}");
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
