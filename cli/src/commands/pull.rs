//! `pull`, and what `run` shares with it.

use api::client::{Client, Method, Target};
use image_unpack::{DockerConfig, Reference};
use serde_json::Value;

use crate::failure::Failure;
use crate::progress::Progress;

/// Pulls an image; what happens is told on standard error.
///
/// # Errors
/// The name is malformed, or the image cannot be fetched.
pub async fn pull(client: &Client, name: &str, platform: Option<&str>, quiet: bool) -> Result<(), Failure> {
    let target = Target::new(["images", "create"]).with("fromImage", name).with_some("platform", platform);
    let target = if tagged(name) { target } else { target.with("tag", "latest") };
    let client = authorized(client, name)?;
    let mut lines = client.lines::<Value>(Method::POST, &target).await?;
    let mut progress = Progress::new(quiet);
    while let Some(line) = lines.next().await? {
        progress.show(&line);
    }
    Ok(())
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
///
/// # Errors
/// They cannot be read.
pub fn authorized(client: &Client, name: &str) -> Result<Client, Failure> {
    let Ok(reference) = name.parse::<Reference>() else { return Ok(client.clone()) };
    let stored = DockerConfig::of_user().map(|config| config.get(reference.registry())).transpose();
    let stored = stored
        .map_err(|source| engine::EngineError::Image { name: name.to_owned(), source: Box::new(source) })?;
    let Some(credentials) = stored.flatten() else { return Ok(client.clone()) };
    let header = api::client::registry_auth(&credentials);
    Ok(client.clone().with_header("X-Registry-Auth", &header)?)
}
