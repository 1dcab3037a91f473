//! `cp`, `export`, `diff` and `commit`: a container's files, which only its own kernel ever reads or writes.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use agent::protocol::{ArchivePut, Call, Change, PathStat};
use image_unpack::{CommitOptions as ImageOptions, Reference};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;

use crate::engine::unexpected;
use crate::model::Container;
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply, receive_descriptor};
use crate::{Engine, EngineError, events, spec};

/// Most changes that are listed.
const MAX_CHANGES: usize = 1 << 20;
/// Most bytes of the list of changes.
const MAX_CHANGES_BYTES: u64 = 256 << 20;

/// The guest's answer, on its way.
type Answering = dyn Future<Output = Result<Reply, EngineError>> + Send;

/// Bytes out of a container. Reading fails at the end if they are not whole.
pub struct Transfer {
    stream: UnixStream,
    container: Container,
    answer: Option<Pin<Box<Answering>>>,
}

/// What an image of a container is to be.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Its name.
    pub reference: Option<Reference>,
    /// What was done.
    pub message: String,
    /// Who did it.
    pub author: String,
    /// Changes of its configuration, in a Dockerfile's words.
    pub changes: Vec<String>,
    /// Its whole `config` object, in Docker's words; the base image's when absent.
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
    /// Freeze the container's processes meanwhile.
    pub pause: bool,
}

impl AsyncRead for Transfer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == before && buffer.remaining() > 0 => {}
            other => return other,
        }
        // The stream's end alone does not say that it is whole: the guest's answer does.
        let Some(answer) = &mut self.answer else { return Poll::Ready(Ok(())) };
        match answer.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                self.answer = None;
                Poll::Ready(result.map(drop).map_err(io::Error::other))
            }
        }
    }
}

impl Transfer {
    /// The container that it comes from.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }
}

impl Engine {
    /// A tar archive of a path of a container, and what the path is.
    ///
    /// # Errors
    /// There is no such path.
    pub async fn archive_get(&self, name: &str, path: &str) -> Result<(PathStat, Transfer), EngineError> {
        let stat = self.path_stat(name, path).await?;
        let transfer = self.transfer(name, Call::ArchiveGet { path: path.to_owned() }).await?;
        self.record(&events::of_container(transfer.container(), "archive-path", &[]))?;
        Ok((stat, transfer))
    }

    /// Unpacks a tar archive in a container.
    ///
    /// # Errors
    /// The archive is malformed, or its directory does not exist.
    pub async fn archive_put(
        &self,
        name: &str,
        put: ArchivePut,
        mut body: impl AsyncRead + Unpin + Send,
    ) -> Result<(), EngineError> {
        let Transfer { mut stream, container, answer } = self.transfer(name, Call::ArchivePut(put)).await?;
        // A guest that refuses the archive stops reading it; its answer tells why.
        let copied = tokio::io::copy(&mut body, &mut stream).await;
        let closed = stream.shutdown().await;
        let answered = match answer {
            Some(answer) => answer.await,
            None => Err(unexpected(&container)),
        };
        answered?;
        copied.map(drop).and(closed).map_err(EngineError::io("sending the archive"))?;
        self.record(&events::of_container(&container, "extract-to-dir", &[]))
    }

    /// A tar archive of a container's whole root file system.
    ///
    /// # Errors
    /// There is no such container.
    pub async fn export(&self, name: &str) -> Result<Transfer, EngineError> {
        let transfer = self.transfer(name, Call::Export).await?;
        self.record(&events::of_container(transfer.container(), "export", &[]))?;
        Ok(transfer)
    }

    /// What a container has changed of its image.
    ///
    /// # Errors
    /// There is no such container, or its list is too long.
    pub async fn changes(&self, name: &str) -> Result<Vec<Change>, EngineError> {
        let mut lines = Vec::new();
        let transfer = self.transfer(name, Call::Changes).await?;
        transfer
            .take(MAX_CHANGES_BYTES)
            .read_to_end(&mut lines)
            .await
            .map_err(EngineError::io("reading the container's changes"))?;
        let guest = |e: serde_json::Error| EngineError::Agent(io::Error::from(e).into());
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.take(MAX_CHANGES).map(|line| serde_json::from_slice(line).map_err(guest)).collect()
    }

    /// Makes an image of a container; returns its id.
    ///
    /// # Errors
    /// The changes are malformed, or the disk is full.
    pub async fn commit(&self, name: &str, options: CommitOptions) -> Result<String, EngineError> {
        let container = self.container(name)?;
        let pauses = options.pause && container.state.status == crate::model::Status::Running;
        if pauses {
            self.pause(&container.id).await?;
        }
        let made = self.commit_now(&container, options).await;
        if pauses {
            self.unpause(&container.id).await?;
        }
        let id = made?;
        self.record(&events::of_container(&container, "commit", &[("imageID", id.clone())]))?;
        Ok(id)
    }

    async fn commit_now(&self, container: &Container, options: CommitOptions) -> Result<String, EngineError> {
        let failed = {
            let name = container.config.image.clone();
            move |source| EngineError::Image { name: name.clone(), source: Box::new(source) }
        };
        let changes = options.changes.iter().map(|change| change.parse()).collect::<Result<_, _>>();
        let image = ImageOptions {
            name: options.reference,
            config: options.config,
            comment: Some(options.message).filter(|text| !text.is_empty()),
            author: Some(options.author).filter(|text| !text.is_empty()),
            created_by: Some(spec::command_line(&container.config).join(" ")),
            changes: changes.map_err(&failed)?,
            ..ImageOptions::default()
        };
        let base = container.config.image_id.parse().map_err(&failed)?;
        let transfer = self.transfer(&container.id, Call::Diff).await?;
        let layer = tokio_util::io::SyncIoBridge::new(transfer);
        let store = self.clone();
        let made = tokio::task::spawn_blocking(move || {
            store.images().commit(Some(base), Some(Box::new(layer)), &image)
        });
        let made =
            made.await.map_err(|e| EngineError::Conflict(format!("the image could not be made: {e}")))?;
        made.map(|image| image.id.to_string()).map_err(failed)
    }

    async fn transfer(&self, name: &str, call: Call) -> Result<Transfer, EngineError> {
        let container = self.container(name)?;
        let ask = Ask::Transfer { call: Box::new(call) };
        let (mut connection, reply) = reach::ask(self.paths(), &container.id, &ask, true).await?;
        let Reply::Transfer = reply else { return Err(unexpected(&container)) };
        let received: io::Result<OwnedFd> = receive_descriptor(&connection).await;
        let stream = received.and_then(|fd| {
            let stream = std::os::unix::net::UnixStream::from(fd);
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let stream = stream.map_err(EngineError::io("receiving a transfer"))?;
        let id = container.id.clone();
        let answer = async move { reach::reply(&mut connection, &id).await };
        Ok(Transfer { stream, container, answer: Some(Box::pin(answer)) })
    }
}
