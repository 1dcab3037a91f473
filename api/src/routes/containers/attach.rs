//! `containers/{id}/attach`, over a connection that is taken over or over a WebSocket.

use axum::Extension;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use engine::model::{Container, Event, EventKind, Status, now};
use engine::{Engine, LogOptions, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::App;
use crate::detach::DetachKeys;
use crate::error::ApiError;
use crate::frames::{Channel, FrameReader, frame};
use crate::hijack::{self, Connection, Ended, Hijack, Input};
use crate::query::Query;
use crate::routes::Answer;
use crate::version::Version;

/// Most bytes of one WebSocket message from a client.
const MAX_MESSAGE: usize = 1 << 20;
/// The version in which clients learned to tell frames from raw bytes by the content type.
const CONTENT_TYPES: Version = Version::new(1, 42);

pub fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/attach/ws", get(websocket))
}

/// The content type of a stream.
pub(in crate::routes) fn kind(tty: bool, version: Version) -> &'static str {
    if tty || version < CONTENT_TYPES { hijack::RAW } else { hijack::MULTIPLEXED }
}

/// What a client asks to be attached to.
struct Wanted {
    streams: Streams,
    /// What was written before comes first.
    logs: bool,
    /// What is written from now on follows.
    stream: bool,
    keys: DetachKeys,
}

impl Wanted {
    fn of(query: &Query) -> Result<Self, ApiError> {
        let wanted = Self {
            streams: Streams {
                stdin: query.flag("stdin"),
                stdout: query.flag("stdout"),
                stderr: query.flag("stderr"),
            },
            logs: query.flag("logs"),
            stream: query.flag("stream"),
            keys: DetachKeys::parse(query.text("detachKeys"))?,
        };
        if !wanted.logs && !wanted.stream {
            return Err(ApiError::bad("Either the stream or logs parameter must be true"));
        }
        Ok(wanted)
    }
}

/// A container that can be attached to.
fn attachable(engine: &Engine, id: &str) -> Result<Container, ApiError> {
    let container = engine.container(id)?;
    match container.state.status {
        Status::Paused => {
            Err(ApiError::conflict(format!("container {id} is paused, unpause the container before attach")))
        }
        Status::Restarting => Err(ApiError::conflict(format!(
            "container {id} is restarting, wait until the container is running"
        ))),
        _ => Ok(container),
    }
}

async fn attach(
    State(app): State<App>,
    Path(id): Path<String>,
    Extension(version): Extension<Version>,
    query: Query,
    hijack: Hijack,
) -> Answer {
    let wanted = Wanted::of(&query)?;
    let container = attachable(&app.engine, &id)?;
    let tty = container.config.tty;
    let past = if wanted.logs { Some(past(&app.engine, &container, wanted.streams).await?) } else { None };
    // Attached before the answer is sent: what is started after it is seen from its first byte.
    let attached =
        if wanted.stream { Some(app.engine.attach(&container.id, wanted.streams).await?) } else { None };
    let engine = app.engine.clone();
    Ok(hijack.answer(kind(tty, version), move |mut client| async move {
        if let Some(past) = past
            && client.write_all(&past).await.is_err()
        {
            return;
        }
        let Some(attached) = attached else {
            let _ = client.shutdown().await;
            return;
        };
        let input = match (wanted.streams.stdin, tty) {
            (false, _) => Input::Ignored,
            (true, false) => Input::Passed,
            (true, true) => Input::Keys(wanted.keys),
        };
        if hijack::pass(client, attached.connection, input).await == Ended::Detached {
            detached(&engine, &container);
        }
    }))
}

/// What was written so far, as it would have been streamed.
async fn past(engine: &Engine, container: &Container, streams: Streams) -> Result<Vec<u8>, ApiError> {
    let options = LogOptions { stdout: streams.stdout, stderr: streams.stderr, ..LogOptions::default() };
    let mut logs = engine.logs(&container.id, options).await?;
    let mut bytes = Vec::new();
    while let Some(line) = logs.next().await {
        let line = line?;
        if container.config.tty {
            bytes.extend_from_slice(&line.text);
        } else {
            bytes.extend_from_slice(&frame(channel(line.stderr), &line.text));
        }
        if bytes.len() > MAX_PAST {
            return Err(ApiError::bad(format!(
                "attach with logs=1 repeats at most {MAX_PAST} bytes: use logs"
            )));
        }
    }
    Ok(bytes)
}

/// Most bytes that are repeated to who attaches with `logs`.
const MAX_PAST: usize = 16 << 20;

/// The channel of a line.
pub(super) fn channel(stderr: bool) -> Channel {
    if stderr { Channel::Stderr } else { Channel::Stdout }
}

fn detached(engine: &Engine, container: &Container) {
    let mut attributes = container.config.labels.clone();
    attributes.insert("name".into(), container.name.clone());
    attributes.insert("image".into(), container.config.image.clone());
    let event = Event {
        sequence: 0,
        time: now(),
        kind: EventKind::Container,
        action: "detach".into(),
        actor: container.id.clone(),
        attributes,
    };
    if let Err(error) = engine.record(&event) {
        tracing::warn!(%error, "the event could not be written down");
    }
}

async fn websocket(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    upgrade: WebSocketUpgrade,
) -> Answer {
    let wanted = Wanted::of(&query)?;
    let container = attachable(&app.engine, &id)?;
    let attached = app.engine.attach(&container.id, wanted.streams).await?;
    let (tty, stdin) = (attached.tty, wanted.streams.stdin);
    let upgrade = upgrade.max_message_size(MAX_MESSAGE);
    let talk = move |socket: WebSocket| async move {
        // The socket's messages are turned into a stream and back, so that both kinds of attaching share one pump.
        let (near, far) = tokio::io::duplex(MAX_MESSAGE);
        let input = match (stdin, tty) {
            (false, _) => Input::Ignored,
            (true, false) => Input::Passed,
            (true, true) => Input::Keys(wanted.keys),
        };
        let passing = pass_raw(Box::new(near), attached.connection, input, tty);
        let ((), ()) = tokio::join!(passing, messages(socket, far));
    };
    Ok(upgrade.on_upgrade(talk).into_response())
}

/// Passes bytes on; frames are opened, because a WebSocket's client knows none.
async fn pass_raw(client: Box<dyn Connection>, process: UnixStream, input: Input, tty: bool) {
    if tty {
        hijack::pass(client, process, input).await;
        return;
    }
    let (near, far) = tokio::io::duplex(MAX_MESSAGE);
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (framed, mut to_process) = tokio::io::split(far);
    let open = async {
        let mut frames = FrameReader::new(framed);
        while let Ok(Some((_, bytes))) = frames.next().await {
            if to_client.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    let up = async {
        // Either end may be gone; the output decides when it is over.
        let _ = tokio::io::copy(&mut from_client, &mut to_process).await;
        let _ = to_process.shutdown().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        (_, ()) = async { tokio::join!(hijack::pass(Box::new(near), process, input), open) } => {}
        () = up => {}
    }
}

/// Passes a WebSocket's messages into a stream, and the stream's bytes into messages.
async fn messages(mut socket: WebSocket, stream: tokio::io::DuplexStream) {
    let (mut output, mut input) = tokio::io::split(stream);
    let mut bytes = vec![0; 32 << 10];
    let mut open = true;
    loop {
        tokio::select! {
            count = output.read(&mut bytes) => {
                let Some(part) = bytes.get(..count.unwrap_or(0)).filter(|part| !part.is_empty()) else { break };
                if socket.send(Message::Binary(part.to_vec().into())).await.is_err() {
                    return;
                }
            }
            message = socket.recv(), if open => match message {
                Some(Ok(Message::Binary(part))) => open = input.write_all(&part).await.is_ok(),
                Some(Ok(Message::Text(text))) => open = input.write_all(text.as_bytes()).await.is_ok(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    let _ = input.shutdown().await;
                    return;
                }
            },
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}
