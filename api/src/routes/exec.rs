//! Further processes: `containers/{id}/exec`, and `exec/{id}/start`, `resize` and `json`.

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use bollard_stubs::models::{ExecInspectResponse, ProcessConfig};
use engine::model::{Exec, ExecConfig, Size};
use engine::{Engine, EngineError};
use hyper::upgrade::OnUpgrade;
use tokio::io::AsyncWriteExt as _;

use super::Answer;
use super::containers::{kind, size};
use crate::App;
use crate::body::{self, JsonBody, json};
use crate::detach::DetachKeys;
use crate::error::ApiError;
use crate::fields::{Fields, Refusal};
use crate::frames::{Channel, frame};
use crate::hijack::{self, Connection, Hijack, Input};
use crate::query::Query;
use crate::version::Version;

const REFUSED: [Refusal; 1] = [Refusal {
    field: "Privileged",
    option: "--privileged",
    neutral: &[],
    why: "a process in a container has what the container has",
    instead: "run the container with --cap-add",
}];

pub fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/resize", post(resize))
        .route("/exec/{id}/json", get(inspect))
}

fn config(mut body: Fields) -> Result<ExecConfig, ApiError> {
    let config = ExecConfig {
        cmd: body.take("Cmd")?,
        env: body.take("Env")?,
        workdir: body.text("WorkingDir")?,
        user: body.text("User")?,
        tty: body.take("Tty")?,
        stdin: body.take("AttachStdin")?,
        stdout: body.take("AttachStdout")?,
        stderr: body.take("AttachStderr")?,
        detach_keys: body.text("DetachKeys")?,
    };
    // The start says size and detaching again, and what counts then is what it says; some clients repeat the path.
    body.forget(&["ConsoleSize", "Detach", "Container"]);
    body.finish(&REFUSED)?;
    if config.cmd.is_empty() {
        return Err(ApiError::bad("No exec command specified"));
    }
    DetachKeys::parse(config.detach_keys.as_deref())?;
    if let Some(path) = config.workdir.as_deref().filter(|path| !path.starts_with('/')) {
        return Err(ApiError::bad(format!(
            "the working directory '{path}' is invalid, it needs to be an absolute path"
        )));
    }
    Ok(config)
}

async fn create(State(app): State<App>, Path(id): Path<String>, body: JsonBody) -> Answer {
    let id = match app.engine.exec_create(&id, config(body.fields()?)?).await {
        Err(EngineError::Paused(name)) => {
            Err(ApiError::conflict(format!("Container {name} is paused, unpause the container before exec")))
        }
        other => other.map_err(ApiError::from),
    }?;
    body::made(&id)
}

/// `[height, width]` of a terminal; `[0, 0]` is none.
fn console(size: Option<&[u16]>) -> Result<Option<Size>, ApiError> {
    match size {
        None | Some([] | [0, 0]) => Ok(None),
        Some(&[rows, columns]) => Ok(Some(Size { rows, columns })),
        Some(_) => Err(ApiError::bad("ConsoleSize has two numbers: height and width")),
    }
}

async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    Extension(version): Extension<Version>,
    mut request: Request,
) -> Answer {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let headers = request.headers().clone();
    let mut fields = JsonBody::from_request(request, &()).await?.fields()?;
    let (detach, tty): (bool, bool) = (fields.take("Detach")?, fields.take("Tty")?);
    let size = console(fields.take::<Option<Vec<u16>>>("ConsoleSize")?.as_deref())?;
    let exec = app.engine.exec(&id)?;
    if exec.started {
        let state = if exec.running { "is already running" } else { "has already run" };
        return Err(ApiError::conflict(format!("Error: Exec command {id} {state}")));
    }
    if size.is_some() && !tty {
        return Err(ApiError::bad("console size is only supported when TTY is enabled"));
    }
    if detach {
        // Nobody reads its output: the connection is closed at once.
        app.engine.exec_start(&id, size).await?;
        return Ok(body::empty(StatusCode::OK));
    }
    let hijack = Hijack::of_parts(&headers, upgrade, Body::empty());
    let engine = app.engine;
    Ok(hijack.answer(kind(exec.config.tty, version), move |client| talk(engine, exec, size, client)))
}

/// Starts the process and passes its bytes on. Why it could not be started is told where its output would be, as Docker
/// does: the answer's status has been sent.
async fn talk(engine: Engine, exec: Exec, size: Option<Size>, mut client: Box<dyn Connection>) {
    let attached = match engine.exec_start(&exec.id, size).await {
        Ok(attached) => attached,
        Err(error) => {
            let text = format!("{}\r\n", ApiError::from(error).body.message);
            let wire = if exec.config.tty { text.into() } else { frame(Channel::Stderr, text.as_bytes()) };
            // The client may be gone already.
            let _ = client.write_all(&wire).await;
            let _ = client.shutdown().await;
            return;
        }
    };
    // They were checked when the process was made.
    let keys = DetachKeys::parse(exec.config.detach_keys.as_deref()).or_else(|_| DetachKeys::parse(None));
    let input = match (exec.config.stdin, exec.config.tty, keys) {
        (true, true, Ok(keys)) => Input::Keys(keys),
        (true, ..) => Input::Passed,
        (false, ..) => Input::Ignored,
    };
    hijack::pass(client, attached.connection, input).await;
}

async fn resize(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    app.engine.exec_resize(&id, size(&query)?).await?;
    Ok(body::empty(StatusCode::OK))
}

async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let exec = app.engine.exec(&id)?;
    let config = exec.config;
    let mut words = config.cmd.into_iter();
    json(&ExecInspectResponse {
        can_remove: Some(!exec.running),
        detach_keys: Some(config.detach_keys.unwrap_or_default()),
        id: Some(exec.id),
        running: Some(exec.running),
        exit_code: exec.exit_code.map(i64::from),
        process_config: Some(ProcessConfig {
            privileged: Some(false),
            user: Some(config.user.unwrap_or_default()),
            tty: Some(config.tty),
            entrypoint: Some(words.next().unwrap_or_default()),
            arguments: Some(words.collect()),
        }),
        open_stdin: Some(config.stdin),
        open_stderr: Some(config.stderr),
        open_stdout: Some(config.stdout),
        container_id: Some(exec.container),
        // A process in a guest has no number on the host.
        pid: Some(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read() {
        let read = |json: &str| config(Fields::new(serde_json::from_str(json).unwrap()));
        let full = read(
            r#"{"Cmd":["ls"],"User":"1","Tty":true,"AttachStdin":true,"Privileged":false,"Env":null,"ConsoleSize":[1,2]}"#,
        );
        let full = full.unwrap();
        assert!(full.tty && full.stdin && !full.stdout && full.user.as_deref() == Some("1"));
        for (bad, word) in [
            ("{}", "No exec command"),
            (r#"{"Cmd":["ls"],"Privileged":true}"#, "--privileged cannot be done"),
            (r#"{"Cmd":["ls"],"DetachKeys":"ctrl-1"}"#, "Invalid detach keys"),
            (r#"{"Cmd":["ls"],"WorkingDir":"x"}"#, "working directory"),
            (r#"{"Cmd":["ls"],"Gizmo":1}"#, "Gizmo 1 cannot be done"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.status == 400 && error.body.message.contains(word), "{error:?}");
        }
        assert_eq!(console(Some(&[24, 80])).unwrap(), Some(Size { rows: 24, columns: 80 }));
        assert_eq!(console(Some(&[0, 0])).unwrap(), None);
        assert!(console(Some(&[1])).is_err());
    }
}
