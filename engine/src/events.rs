//! What happened, and watching it happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::EngineError;
use crate::database::Database;
use crate::model::{Container, Event, EventKind, now};

/// How often the database is looked at while somebody watches.
const INTERVAL: Duration = Duration::from_millis(20);

/// An event of a container, with what Docker tells along.
pub(crate) fn of_container(container: &Container, action: &str, more: &[(&str, String)]) -> Event {
    let mut attributes: BTreeMap<String, String> = container.config.labels.clone();
    attributes.insert("name".to_owned(), container.name.clone());
    attributes.insert("image".to_owned(), container.config.image.clone());
    attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Event {
        sequence: 0,
        time: now(),
        kind: EventKind::Container,
        action: action.to_owned(),
        actor: container.id.clone(),
        attributes,
    }
}

/// Events as they happen, whichever process they happen in.
#[derive(Debug)]
pub struct EventStream {
    database: Arc<Database>,
    after: i64,
    since: i64,
    batch: std::vec::IntoIter<Event>,
}

impl EventStream {
    /// Events from a time on (nanoseconds since 1970), past ones first; `None`: from now on.
    pub(crate) fn new(database: Arc<Database>, since: Option<i64>) -> Result<Self, EngineError> {
        let after = if since.is_some() { 0 } else { database.last_event()? };
        Ok(Self { database, after, since: since.unwrap_or(0), batch: Vec::new().into_iter() })
    }

    /// The next event that has happened already, if there is one.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn poll(&mut self) -> Result<Option<Event>, EngineError> {
        if let Some(event) = self.batch.next() {
            return Ok(Some(event));
        }
        let batch = self.database.events(self.after, self.since)?;
        if let Some(last) = batch.last() {
            self.after = last.sequence;
        }
        self.batch = batch.into_iter();
        Ok(self.batch.next())
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub async fn next(&mut self) -> Result<Event, EngineError> {
        loop {
            if let Some(event) = self.poll()? {
                return Ok(event);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
