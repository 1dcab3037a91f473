//! The engine: one value that every verb hangs on.

use std::sync::{Arc, Mutex, PoisonError};

use image_unpack::Store;

use crate::accelerator::{self, Chosen};
use crate::database::Database;
use crate::events::EventStream;
use crate::model::{Container, ContainerConfig, Event};
use crate::options::{AcceleratorChoice, Isolation};
use crate::paths::Paths;
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply};
use crate::{EngineError, truth};

/// Containers, images, volumes and networks of one state directory. Cheap to clone; safe beside other processes that use the same directory.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    paths: Paths,
    database: Arc<Database>,
    images: Store,
    /// What its owner should be told about the accelerator, once.
    notice: Mutex<Option<String>>,
}

impl Engine {
    /// Opens a state directory.
    ///
    /// # Errors
    /// It cannot be read or written, or belongs to another version.
    pub fn open(paths: Paths) -> Result<Self, EngineError> {
        let database = Arc::new(Database::open(&paths.database())?);
        let images = Store::open(&paths.images())
            .map_err(|source| EngineError::Image { name: "store".to_owned(), source: Box::new(source) })?;
        truth::sweep(&database, &paths)?;
        Ok(Self(Arc::new(Inner { paths, database, images, notice: Mutex::default() })))
    }

    /// Where state and parts lie.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.0.paths
    }

    /// The image store. Its calls block.
    #[must_use]
    pub fn images(&self) -> &Store {
        &self.0.images
    }

    /// The accelerator for these wishes. That it was measured is kept for [`Engine::notice`].
    pub(crate) fn accelerator(
        &self,
        choice: AcceleratorChoice,
        isolation: Isolation,
    ) -> Result<Chosen, EngineError> {
        let chosen = accelerator::choose(choice, isolation, &self.paths().cache_files())?;
        if let Some(notice) = &chosen.notice {
            *self.0.notice.lock().unwrap_or_else(PoisonError::into_inner) = Some(notice.clone());
        }
        Ok(chosen)
    }

    /// The accelerator and the boundary that a container would have if it were started now; `None` if it cannot be.
    #[must_use]
    pub fn would_have(&self, config: &ContainerConfig) -> Option<(String, String)> {
        let chosen = self.accelerator(config.accelerator, config.isolation).ok()?;
        Some((chosen.accelerator.name().to_owned(), chosen.boundary.to_owned()))
    }

    /// What is to be told about the accelerator since the last time that this was asked.
    pub(crate) fn notice(&self) -> Option<String> {
        self.0.notice.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn database(&self) -> &Database {
        &self.0.database
    }

    /// Events from a time on (nanoseconds since 1970), past ones first; `None`: from now on.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn events(&self, since: Option<i64>) -> Result<EventStream, EngineError> {
        EventStream::new(Arc::clone(&self.0.database), since)
    }

    /// Remembers an event, such as one of an image.
    ///
    /// # Errors
    /// The state database cannot be written.
    pub fn record(&self, event: &Event) -> Result<(), EngineError> {
        self.database().insert_event(event)
    }

    /// Asks a container's supervisor one question, and starts one if there is none.
    pub(crate) async fn ask(&self, container: &Container, question: &Ask) -> Result<Reply, EngineError> {
        reach::ask(self.paths(), &container.id, question, true).await.map(|(_, reply)| reply)
    }

    /// Asks the supervisor of a container that runs.
    pub(crate) async fn ask_running(&self, name: &str, question: &Ask) -> Result<Reply, EngineError> {
        let container = self.container(name)?;
        if !container.state.status.is_running() {
            return Err(EngineError::NotRunning(name.to_owned()));
        }
        reach::ask(self.paths(), &container.id, question, false).await.map(|(_, reply)| reply)
    }
}

/// The error for an answer that does not fit the question.
pub(crate) fn unexpected(container: &Container) -> EngineError {
    EngineError::SupervisorGone(container.id.clone())
}
