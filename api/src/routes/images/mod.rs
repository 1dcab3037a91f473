//! Images. Their names have slashes, so that what follows a name is found here and not by the router.

mod archive;
mod inspect;
mod list;
mod prune;
mod pull;
mod push;
mod remove;

use std::collections::BTreeMap;

use axum::Extension;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::{delete, get};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use engine::Engine;
use engine::model::{Event, EventKind, now};
use image_unpack::{Credentials, Platform, Reference, Registries};
use serde::Deserialize;

use super::Answer;
use crate::App;
use crate::error::ApiError;
use crate::query::Query;
use crate::version::Version;

pub use list::summaries;

/// Most bytes of a header with credentials.
const MAX_AUTH: usize = 64 << 10;

pub fn routes() -> Router<App> {
    Router::new()
        .merge(list::routes())
        .merge(pull::routes())
        .merge(archive::routes())
        .merge(prune::routes())
        .route("/images/search", get(search))
        .route("/images/{*rest}", get(read).post(write).delete(remove::remove))
        .route("/images", delete(nothing))
}

async fn nothing() -> ApiError {
    ApiError::not_found("page not found")
}

/// Registries have no search in common (the distribution specification has none).
async fn search() -> ApiError {
    ApiError::missing(
        "search is not supported: only Docker Hub's web site has one, and no registry's protocol does; search there, \
         and pull by name",
    )
}

async fn read(
    State(app): State<App>,
    Path(rest): Path<String>,
    Extension(version): Extension<Version>,
    query: Query,
) -> Answer {
    match rest.rsplit_once('/') {
        Some((name, "json")) => inspect::show(app, name.to_owned(), version, &query).await,
        Some((name, "history")) => inspect::history(app, name.to_owned()).await,
        Some((name, "get")) => archive::save(app, vec![name.to_owned()]).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn write(State(app): State<App>, Path(rest): Path<String>, query: Query, headers: HeaderMap) -> Answer {
    match rest.rsplit_once('/') {
        Some((name, "tag")) => list::tag(app, name.to_owned(), &query).await,
        Some((name, "push")) => push::push(app, name, &query, &headers).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// A reference of a name and, in a parameter of its own, a tag or digest.
///
/// # Errors
/// It is not one.
pub fn reference(name: &str, tag: Option<&str>) -> Result<Reference, ApiError> {
    let whole = match tag {
        None => name.to_owned(),
        Some(digest) if digest.contains(':') => format!("{name}@{digest}"),
        Some(tag) => {
            // A tag of its own wins over one in the name.
            let slash = name.rfind('/').map_or(0, |slash| slash + 1);
            let bare = name
                .get(slash..)
                .and_then(|last| last.split_once(':'))
                .map_or(name, |(last, _)| name.get(..slash + last.len()).unwrap_or(name));
            format!("{bare}:{tag}")
        }
    };
    Ok(whole.parse::<Reference>()?)
}

/// The parameter `platform`: `os/architecture[/variant]`, or the JSON of an OCI platform as clients of today send it.
fn platform(query: &Query) -> Result<Platform, ApiError> {
    #[derive(Deserialize)]
    struct Wire {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: String,
    }
    let Some(text) = query.text("platform") else { return Ok(Platform::host()) };
    let text = if text.trim_start().starts_with('{') {
        let wire: Wire =
            serde_json::from_str(text).map_err(|e| ApiError::bad(format!("invalid platform: {e}")))?;
        let slash = if wire.variant.is_empty() { "" } else { "/" };
        format!("{}/{}{slash}{}", wire.os, wire.architecture, wire.variant)
    } else {
        text.to_owned()
    };
    Ok(text.parse::<Platform>()?)
}

/// How registries are reached for one request: with the credentials of its `X-Registry-Auth`, for the registry of `name`.
///
/// # Errors
/// The header is malformed.
pub fn registries(headers: &HeaderMap, name: &Reference) -> Result<Registries, ApiError> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Auth {
        username: String,
        password: String,
        auth: String,
        identitytoken: String,
        registrytoken: String,
    }
    let registries = Registries::default();
    let Some(text) = headers.get("x-registry-auth").filter(|text| !text.is_empty()) else {
        return Ok(registries);
    };
    let bad = || ApiError::bad("X-Registry-Auth is not base64 of a JSON object with credentials");
    if text.len() > MAX_AUTH {
        return Err(bad());
    }
    // URL-safe by the specification, with padding or without; some clients send the other alphabet.
    let plain: String =
        text.to_str().map_err(|_| bad())?.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let padded = format!("{plain}{}", "=".repeat((4 - plain.len() % 4) % 4));
    let json = URL_SAFE.decode(padded).map_err(|_| bad())?;
    if json.trim_ascii().is_empty() {
        return Ok(registries);
    }
    let mut auth: Auth = serde_json::from_slice(&json).map_err(|_| bad())?;
    if auth.username.is_empty() && !auth.auth.is_empty() {
        let pair =
            STANDARD.decode(&auth.auth).ok().and_then(|pair| String::from_utf8(pair).ok()).ok_or_else(bad)?;
        let (user, password) = pair.split_once(':').ok_or_else(bad)?;
        (auth.username, auth.password) = (user.to_owned(), password.to_owned());
    }
    let credentials = if !auth.registrytoken.is_empty() {
        Credentials::RegistryToken(auth.registrytoken)
    } else if !auth.identitytoken.is_empty() {
        Credentials::IdentityToken(auth.identitytoken)
    } else if !auth.username.is_empty() {
        Credentials::Password { user: auth.username, password: auth.password }
    } else {
        return Ok(registries);
    };
    Ok(registries.with_credentials(name.registry(), credentials))
}

/// Writes an event about an image down. That it cannot be is told in the log: what was done is done.
fn event(engine: &Engine, action: &str, actor: &str, name: &str) {
    let event = Event {
        sequence: 0,
        time: now(),
        kind: EventKind::Image,
        action: action.into(),
        actor: actor.into(),
        attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
    };
    if let Err(error) = engine.record(&event) {
        tracing::warn!(%error, action, "the event could not be written down");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags_are_put_together() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, tag, whole) in [
            ("busybox", None, "busybox:latest"),
            ("busybox", Some("1"), "busybox:1"),
            ("busybox:2", Some("1"), "busybox:1"),
            ("localhost:5000/a/b", Some("1"), "localhost:5000/a/b:1"),
            ("busybox", Some(digest.as_str()), &format!("busybox@{digest}")),
        ] {
            assert_eq!(reference(name, tag).unwrap().familiar(), whole);
        }
        assert_eq!(reference("Not A Name", None).unwrap_err().status, 400);
    }

    #[test]
    fn credentials_are_read_in_either_alphabet() {
        let name: Reference = "localhost:5000/a".parse().unwrap();
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([("x-registry-auth".parse().unwrap(), text.parse().unwrap())]);
            registries(&headers, &name)
                .map(|registries| registries.credentials.get("localhost:5000").cloned())
        };
        let json = r#"{"username":"me?>","password":"p?>?>"}"#;
        let want = Some(Credentials::Password { user: "me?>".into(), password: "p?>?>".into() });
        assert_eq!(read(&STANDARD.encode(json)).unwrap(), want);
        assert_eq!(read(&URL_SAFE.encode(json)).unwrap(), want);
        assert_eq!(read(URL_SAFE.encode(json).trim_end_matches('=')).unwrap(), want);
        assert_eq!(read(&URL_SAFE.encode("{}")).unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("!").unwrap_err().status, 400);
        let token = read(&URL_SAFE.encode(r#"{"identitytoken":"t"}"#)).unwrap();
        assert_eq!(token, Some(Credentials::IdentityToken("t".into())));
    }

    #[test]
    fn platforms_are_texts_or_json() {
        let read = |text: &str| platform(&Query::parse(text).unwrap());
        assert_eq!(read("").unwrap(), Platform::host());
        let text = read("platform=linux/arm64").unwrap();
        assert_eq!(read("platform=%7B%22os%22:%22linux%22,%22architecture%22:%22arm64%22%7D").unwrap(), text);
        assert_eq!(read("platform=%7B").unwrap_err().status, 400);
    }
}
