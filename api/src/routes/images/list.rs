//! `images/json` and `images/{name}/tag`.

use std::collections::{BTreeSet, HashMap};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::get;
use bollard_stubs::models::ImageSummary;
use engine::Engine;
use image_unpack::Summary;

use super::reference;
use crate::App;
use crate::body::{empty, json};
use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::routes::containers::until;
use crate::routes::{Answer, blocking};

const KNOWN: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];

pub fn routes() -> Router<App> {
    Router::new().route("/images/json", get(list))
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&KNOWN)?;
    let shared = query.flag("shared-size");
    let list = blocking(move || summaries(&app.engine, &filters, shared)).await?;
    json(&list)
}

/// The images that pass, newest first.
///
/// # Errors
/// A filter names an image that is not there; the store cannot be read.
pub fn summaries(engine: &Engine, filters: &Filters, shared: bool) -> Result<Vec<ImageSummary>, ApiError> {
    let images = engine.images().images()?;
    let created = |name: &str| -> Result<Option<i64>, ApiError> {
        let Some(image) = filters.values(name).last() else { return Ok(None) };
        let id = engine.images().find(image)?.id;
        Ok(images.iter().find(|summary| summary.id == id).map(|summary| summary.built))
    };
    let (before, since, until) = (created("before")?, created("since")?, until(filters)?);
    let dangling = filters.flag("dangling")?;
    let usage = if shared { engine.images().df()?.images } else { Vec::new() };
    let containers = engine.containers()?;
    let used: Vec<&str> = containers.iter().map(|container| container.config.image_id.as_str()).collect();
    let passes = |image: &&Summary| {
        dangling.is_none_or(|wanted| wanted == image.repo_tags.is_empty())
            && before.is_none_or(|time| image.built < time)
            && since.is_none_or(|time| image.built > time)
            && until.is_none_or(|time| image.built < time / 1_000_000_000)
            && filters.labels(&image.labels)
            && filters.any("reference", |pattern| image.repo_tags.iter().any(|name| matches(pattern, name)))
    };
    let asked = |name: &str| filters.any("reference", |pattern| matches(pattern, name));
    let show = |image: &Summary| {
        let id = image.id.to_string();
        ImageSummary {
            parent_id: String::new(),
            // Of an image with several names, those that were asked for.
            repo_tags: image.repo_tags.iter().filter(|name| asked(name)).cloned().collect(),
            repo_digests: image.repo_digests.clone(),
            created: image.built,
            size: i64::try_from(image.size).unwrap_or(i64::MAX),
            shared_size: usage
                .iter()
                .find(|usage| usage.id == image.id)
                .map_or(-1, |usage| i64::try_from(usage.shared_size).unwrap_or(i64::MAX)),
            virtual_size: None,
            labels: image.labels.clone().into_iter().collect::<HashMap<_, _>>(),
            containers: i64::try_from(used.iter().filter(|user| **user == id).count()).unwrap_or(i64::MAX),
            manifests: None,
            descriptor: None,
            id,
        }
    };
    Ok(images.iter().filter(passes).map(show).collect())
}

/// Whether a pattern such as `busy*`, `busybox:1.*` or `*/*` is a name, as Go's `path.Match` has it: `*` is anything but a slash.
fn matches(pattern: &str, name: &str) -> bool {
    let bare = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(bare, _)| bare);
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), bare.as_bytes())
}

/// Every pair of beginnings is looked at once: a hostile pattern costs its length times the name's.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let mut at: BTreeSet<usize> = BTreeSet::from([0]);
    for &byte in pattern {
        let mut next = BTreeSet::new();
        for position in at {
            let rest = name.get(position..).unwrap_or_default();
            match byte {
                b'*' => {
                    let most = rest.iter().take_while(|byte| **byte != b'/').count();
                    next.extend(position..=position + most);
                }
                b'?' if rest.first().is_some_and(|byte| *byte != b'/') => {
                    next.insert(position + 1);
                }
                _ if rest.first() == Some(&byte) => {
                    next.insert(position + 1);
                }
                _ => {}
            }
        }
        at = next;
    }
    at.contains(&name.len())
}

/// Gives an image another name.
///
/// # Errors
/// There is no such image, or the name is none.
pub async fn tag(app: App, name: String, query: &Query) -> Result<Response<Body>, ApiError> {
    let repository =
        query.text("repo").ok_or_else(|| ApiError::bad("invalid reference format: repo is empty"))?;
    let target = reference(repository, query.text("tag"))?;
    blocking(move || {
        let image = app.engine.images().find(&name)?;
        app.engine.images().tag(image.id, &target)?;
        super::event(&app.engine, "tag", &image.id.to_string(), &target.familiar());
        Ok(())
    })
    .await?;
    Ok(empty(StatusCode::CREATED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_gos_do() {
        for (pattern, name) in [
            ("busybox", "busybox:latest"),
            ("busy*", "busybox:latest"),
            ("busybox:l*", "busybox:latest"),
            ("*/*", "library/x:1"),
            ("?usybox", "busybox:1"),
            ("localhost:5000/a", "localhost:5000/a:1"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("busy", "busybox:latest"), ("*", "a/b:1"), ("busybox:1", "busybox:2"), ("", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        let hostile = "*a".repeat(200);
        assert!(!matches(&hostile, &"a".repeat(150)));
    }
}
