//! Names that a shell completes: asked for when the key is pressed, so that they are those that exist.

use std::ffi::OsStr;

use api::client::{Client, Target};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use serde_json::Value;

use crate::args::Global;
use crate::connect;

/// Most names that are offered.
const MOST: usize = 500;

/// Names of containers, running or not.
pub fn containers() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        names(typed, &Target::new(["containers", "json"]).with("all", 1), |container| {
            let names = container["Names"].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.map(|name| name.trim_start_matches('/').to_owned()).collect()
        })
    })
}

/// Names of images.
pub fn images() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        names(typed, &Target::new(["images", "json"]), |image| {
            let tags = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
            tags.filter(|tag| !tag.starts_with("<none>")).map(str::to_owned).collect()
        })
    })
}

/// Names of networks.
pub fn networks() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        names(typed, &Target::new(["networks"]), |network| name(&network["Name"]))
    })
}

/// Names of volumes.
pub fn volumes() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        names(typed, &Target::new(["volumes"]), |volume| name(&volume["Name"]))
    })
}

/// Names of everything that can be inspected.
pub fn anything() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let mut all = Vec::new();
        for kind in [containers(), images(), networks(), volumes()] {
            all.extend(kind.complete(typed));
        }
        all
    })
}

fn name(value: &Value) -> Vec<String> {
    value.as_str().map(str::to_owned).into_iter().collect()
}

/// Names that begin with what was typed. Nobody is told why there are none: the line is being written.
fn names(typed: &OsStr, target: &Target, of: impl Fn(&Value) -> Vec<String>) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer: Option<Value> = runtime.block_on(async {
        let client: Client = connect::client(&Global::default()).ok()?;
        client.get(target).await.ok()
    });
    runtime.shutdown_background();
    let Some(answer) = answer else { return Vec::new() };
    // Volumes come in an object.
    let list = answer.as_array().or_else(|| answer["Volumes"].as_array());
    let all = list.into_iter().flatten().flat_map(of);
    all.filter(|name| name.starts_with(typed)).take(MOST).map(CompletionCandidate::new).collect()
}
