//! The state database: one SQLite file in write-ahead mode, used by the daemon, by every command and by every supervisor at once.
//!
//! Rows are JSON documents of [`crate::model`] with the few columns that are searched. A supervisor writes its container's
//! `state`; whoever changes what a container is writes its `config`; so neither undoes the other's work.

mod containers;
mod events;
mod execs;
mod objects;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::EngineError;

/// Layout of the database; another one is refused, not guessed at.
const LAYOUT: i64 = 1;
/// How long a writer waits for another one.
const PATIENCE: Duration = Duration::from_secs(20);

const TABLES: &str = "
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL,
        config TEXT NOT NULL, state TEXT NOT NULL) STRICT;
    CREATE TABLE execs (
        id TEXT PRIMARY KEY, container TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE INDEX execs_of_container ON execs (container);
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE volumes (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
    CREATE TABLE networks (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, document TEXT NOT NULL) STRICT;
";

/// An open state database. It may be shared by threads.
#[derive(Debug)]
pub(crate) struct Database(Mutex<Connection>);

/// Whether a change must survive a crash of the host, or only one of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On disk when the call returns.
    Host,
    /// Written, not waited for. A crash of the host may undo it, never tear it.
    Process,
}

impl Database {
    /// Opens the database, and makes it on first use.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let fresh = !path.exists();
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        if fresh {
            restrict(path)?;
        }
        let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match layout {
            LAYOUT => {}
            0 => {
                connection.pragma_update(None, "journal_mode", "WAL")?;
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
                // Another process may have been faster.
                let layout: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
                if layout == 0 {
                    transaction.execute_batch(TABLES)?;
                    transaction.pragma_update(None, "user_version", LAYOUT)?;
                }
                transaction.commit()?;
            }
            other => {
                return Err(EngineError::Conflict(format!(
                    "the state database {} has layout {other}, and this version of Bulkhead knows {LAYOUT}",
                    path.display()
                )));
            }
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Self(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while it was held rolled the transaction back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes several things together, or none of them.
    fn write<T>(
        &self,
        durability: Durability,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut connection = self.lock();
        if durability == Durability::Host {
            connection.pragma_update(None, "synchronous", "FULL")?;
        }
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let result = write(&mut connection);
        if durability == Durability::Host {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
        }
        result
    }
}

fn restrict(path: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(EngineError::io(format!("protecting {}", path.display())))
}

fn encode(value: &impl Serialize) -> Result<String, EngineError> {
    serde_json::to_string(value)
        .map_err(|e| EngineError::Conflict(format!("a record cannot be written: {e}")))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, EngineError> {
    serde_json::from_str(text)
        .map_err(|e| EngineError::Conflict(format!("a record of the state database is damaged: {e}")))
}

#[cfg(test)]
mod tests;
