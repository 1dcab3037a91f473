//! Further processes in the database.

use rusqlite::{OptionalExtension, params};

use super::{Database, Durability, decode, encode};
use crate::EngineError;
use crate::model::Exec;

impl Database {
    /// Writes a further process down, or changes it.
    pub(crate) fn put_exec(&self, exec: &Exec) -> Result<(), EngineError> {
        let text = encode(exec)?;
        self.write(Durability::Process, |db| {
            db.execute(
                "INSERT INTO execs (id, container, document) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET document = excluded.document",
                params![exec.id, exec.container, text],
            )?;
            Ok(())
        })
    }

    /// A further process by its id.
    pub(crate) fn exec(&self, id: &str) -> Result<Exec, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT document FROM execs WHERE id = ?1")?;
        let text: Option<String> = query.query_row([id], |row| row.get(0)).optional()?;
        decode(&text.ok_or_else(|| EngineError::NoExec(id.to_owned()))?)
    }

    /// Ids of a container's further processes.
    pub(crate) fn execs_of(&self, container: &str) -> Result<Vec<String>, EngineError> {
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT id FROM execs WHERE container = ?1 ORDER BY rowid")?;
        Ok(query.query_map([container], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// Forgets a container's further processes: its machine is gone.
    pub(crate) fn delete_execs_of(&self, container: &str) -> Result<(), EngineError> {
        self.write(Durability::Process, |db| {
            db.execute("DELETE FROM execs WHERE container = ?1", [container])?;
            Ok(())
        })
    }
}
