//! `containers/{id}/archive`: what `cp` uses. HEAD tells of a path, GET reads it as a tar archive, PUT unpacks one.

use agent::protocol::{ArchivePut, PathStat};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::EngineError;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::App;
use crate::body::{self, bytes, empty};
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::{Answer, unpacked};
use crate::times;

/// Header with what is told of a path.
const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

pub fn routes() -> Router<App> {
    Router::new().route("/containers/{id}/archive", get(read).head(stat).put(write))
}

/// A path as Docker's clients read it.
#[derive(Debug, Serialize)]
struct Stat {
    name: String,
    size: u64,
    /// Go's file mode: the permissions, and the kind in the upper bits.
    mode: u32,
    mtime: String,
    #[serde(rename = "linkTarget")]
    link_target: String,
}

/// Go's file mode of a `st_mode` (Go's package io/fs).
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 1 << 31,
        libc::S_IFLNK => 1 << 27,
        libc::S_IFBLK => 1 << 26,
        libc::S_IFIFO => 1 << 25,
        libc::S_IFSOCK => 1 << 24,
        libc::S_IFCHR => 1 << 26 | 1 << 21,
        _ => 0,
    };
    let bit = |mask: u32, bit: u32| if mode & mask == 0 { 0 } else { bit };
    kind | (mode & 0o777)
        | bit(libc::S_ISUID, 1 << 23)
        | bit(libc::S_ISGID, 1 << 22)
        | bit(libc::S_ISVTX, 1 << 20)
}

fn header(stat: PathStat) -> Result<HeaderValue, ApiError> {
    let stat = Stat {
        name: stat.name,
        size: stat.size,
        mode: go_mode(stat.mode),
        mtime: times::rfc3339(stat.modified),
        link_target: stat.link_target,
    };
    let json = serde_json::to_vec(&stat).map_err(|e| ApiError::internal(e.to_string()))?;
    HeaderValue::from_str(&STANDARD.encode(json)).map_err(|e| ApiError::internal(e.to_string()))
}

fn path(query: &Query) -> Result<&str, ApiError> {
    query.text("path").ok_or_else(|| ApiError::bad("bad parameter: path cannot be empty"))
}

/// An error about a path, in Docker's words.
fn about(path: &str, id: &str) -> impl FnOnce(EngineError) -> ApiError {
    let (path, id) = (path.to_owned(), id.to_owned());
    move |error| {
        let missing = matches!(&error, EngineError::Guest(failure) if failure.kind == agent::protocol::FailureKind::NoSuchPath);
        if missing {
            return ApiError::not_found(format!("Could not find the file {path} in container {id}"));
        }
        error.into()
    }
}

async fn stat(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let path = path(&query)?;
    let stat = app.engine.path_stat(&id, path).await.map_err(about(path, &id))?;
    let mut response = empty(StatusCode::OK);
    response.headers_mut().insert(STAT, header(stat)?);
    Ok(response)
}

async fn read(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let path = path(&query)?;
    let (stat, transfer) = app.engine.archive_get(&id, path).await.map_err(about(path, &id))?;
    let mut response = bytes("application/x-tar", transfer);
    response.headers_mut().insert(STAT, header(stat)?);
    Ok(response)
}

async fn write(State(app): State<App>, Path(id): Path<String>, query: Query, body: Body) -> Answer {
    let path = path(&query)?;
    let put = ArchivePut {
        path: path.to_owned(),
        no_overwrite_dir_non_dir: query.flag("noOverwriteDirNonDir"),
        owner: None,
    };
    if query.flag("copyUIDGID") {
        // Docker gives the files to the container's user instead of the archive's numbers.
        let user = app.engine.container(&id)?.config.user.unwrap_or_default();
        let put = ArchivePut { owner: Some(user).filter(|user| !user.is_empty()), ..put };
        return unpack(&app, &id, put, body).await;
    }
    unpack(&app, &id, put, body).await
}

async fn unpack(app: &App, id: &str, put: ArchivePut, body: Body) -> Answer {
    let path = put.path.clone();
    let mut archive = unpacked(body::reader(body)).await?;
    app.engine.archive_put(id, put, &mut archive).await.map_err(about(&path, id))?;
    // What a client sends behind the archive's end is read, so that it may read the answer.
    let mut rest = [0; 8192];
    while archive.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    Ok(empty(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        for (mode, go) in [
            (0o100_644, 0o644),
            (0o040_755, 1 << 31 | 0o755),
            (0o120_777, 1 << 27 | 0o777),
            (0o104_755, 1 << 23 | 0o755),
            (0o041_777, 1 << 31 | 1 << 20 | 0o777),
            (0o020_620, 1 << 26 | 1 << 21 | 0o620),
        ] {
            assert_eq!(go_mode(mode), go, "{mode:o}");
        }
        let stat =
            PathStat { name: "a".into(), size: 1, mode: 0o100_600, modified: 0, link_target: String::new() };
        let text = STANDARD.decode(header(stat).unwrap().as_bytes()).unwrap();
        let text: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            text,
            serde_json::json!({"name":"a","size":1,"mode":384,"mtime":"0001-01-01T00:00:00Z","linkTarget":""})
        );
    }
}
