//! What the image says where the caller says nothing.

use image_unpack::oci_spec::image::ImageConfiguration;

use crate::EngineError;
use crate::model::{ContainerConfig, HealthCheck};

/// Sets a variable (`NAME=value`), or takes it away (`NAME`). A name keeps its first place.
pub(super) fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let place = env.iter().position(|e| name(e) == name(entry));
    match (place, entry.contains('=')) {
        (Some(place), true) => entry.clone_into(&mut env[place]),
        (None, true) => env.push(entry.to_owned()),
        (Some(place), false) => drop(env.remove(place)),
        (None, false) => {}
    }
}

/// Fills in what the caller left to the image.
///
/// # Errors
/// There is no command to run.
pub fn merge(
    config: &mut ContainerConfig,
    image: &ImageConfiguration,
    health: Option<HealthCheck>,
) -> Result<(), EngineError> {
    let of_image = image.config().clone().unwrap_or_default();
    let entrypoint_given = config.entrypoint.is_some();
    // As with Docker, an entrypoint from the caller makes the image's command void, and an empty word clears the image's.
    if config.entrypoint.as_ref().is_some_and(|words| words.iter().all(String::is_empty)) {
        config.entrypoint = Some(Vec::new());
    } else if !entrypoint_given {
        config.entrypoint = of_image.entrypoint().clone();
    }
    if !entrypoint_given && config.cmd.as_ref().is_none_or(Vec::is_empty) {
        config.cmd = of_image.cmd().clone();
    }
    if super::command_line(config).is_empty() {
        return Err(EngineError::NoCommand);
    }
    let mut env = of_image.env().clone().unwrap_or_default();
    config.env.iter().for_each(|entry| set_variable(&mut env, entry));
    config.env = env;
    let or = |own: &Option<String>, image: &Option<String>| {
        own.clone().filter(|text| !text.is_empty()).or_else(|| image.clone())
    };
    config.workdir = or(&config.workdir, of_image.working_dir());
    config.user = or(&config.user, of_image.user());
    config.stop_signal = or(&config.stop_signal, of_image.stop_signal());
    for (name, value) in of_image.labels().iter().flatten() {
        config.labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    config.exposed_ports.extend(of_image.exposed_ports().iter().flatten().cloned());
    config.volumes.extend(of_image.volumes().iter().flatten().cloned());
    if let Some(of_image) = health {
        merge_health(config, of_image);
    }
    Ok(())
}

/// As with Docker, a caller's times count beside the image's command.
fn merge_health(config: &mut ContainerConfig, of_image: HealthCheck) {
    let Some(own) = &mut config.health_check else {
        config.health_check = Some(of_image);
        return;
    };
    if own.test.is_empty() {
        own.test = of_image.test;
    }
    for (own, of_image) in [
        (&mut own.interval, of_image.interval),
        (&mut own.timeout, of_image.timeout),
        (&mut own.start_period, of_image.start_period),
        (&mut own.start_interval, of_image.start_interval),
    ] {
        if *own == 0 {
            *own = of_image;
        }
    }
    if own.retries == 0 {
        own.retries = of_image.retries;
    }
}
