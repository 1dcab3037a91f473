//! Containers in the database.

use rusqlite::{OptionalExtension, Row, params};

use super::{Database, Durability, decode, encode};
use crate::EngineError;
use crate::model::{Container, ContainerConfig, State};

const COLUMNS: &str = "SELECT id, name, created, config, state FROM containers";
/// Most containers that an unclear name is looked for in.
const AMBIGUOUS: usize = 2;

impl Database {
    /// Writes a new container down.
    ///
    /// # Errors
    /// Its name is taken.
    pub(crate) fn insert_container(&self, container: &Container) -> Result<(), EngineError> {
        let durability = if container.config.auto_remove { Durability::Process } else { Durability::Host };
        self.write(durability, |db| {
            let taken: Option<String> = db
                .query_row("SELECT id FROM containers WHERE name = ?1", [&container.name], |row| row.get(0))
                .optional()?;
            if let Some(id) = taken {
                return Err(EngineError::NameTaken { name: container.name.clone(), id });
            }
            db.execute(
                "INSERT INTO containers (id, name, created, config, state) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    container.id,
                    container.name,
                    container.created,
                    encode(&container.config)?,
                    encode(&container.state)?
                ],
            )?;
            Ok(())
        })
    }

    /// All containers, newest first.
    pub(crate) fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(&format!("{COLUMNS} ORDER BY created DESC, id"))?;
        let rows = query.query_map([], columns)?;
        rows.map(|row| container(row?)).collect()
    }

    /// One container by id, name, or unambiguous beginning of its id.
    pub(crate) fn container(&self, name: &str) -> Result<Container, EngineError> {
        let connection = self.lock();
        let plain = name.strip_prefix('/').unwrap_or(name);
        let mut exact = connection
            .prepare_cached(&format!("{COLUMNS} WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC"))?;
        if let Some(row) = exact.query_row([plain], columns).optional()? {
            return container(row);
        }
        if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(EngineError::NoContainer(name.to_owned()));
        }
        let mut beginning = connection
            .prepare_cached(&format!("{COLUMNS} WHERE substr(id, 1, length(?1)) = ?1 LIMIT {AMBIGUOUS}"))?;
        let found = beginning.query_map([plain], columns)?.collect::<Result<Vec<_>, _>>()?;
        let several = found.len() == AMBIGUOUS;
        match found.into_iter().next() {
            None => Err(EngineError::NoContainer(name.to_owned())),
            Some(_) if several => Err(EngineError::Ambiguous(name.to_owned())),
            Some(row) => container(row),
        }
    }

    /// Changes where a container is in its life; what it is stays.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn set_state(&self, id: &str, state: &State) -> Result<(), EngineError> {
        let text = encode(state)?;
        self.write(Durability::Process, |db| {
            match db.execute("UPDATE containers SET state = ?2 WHERE id = ?1", params![id, text])? {
                0 => Err(EngineError::NoContainer(id.to_owned())),
                _ => Ok(()),
            }
        })
    }

    /// Changes what a container is; where it is in its life stays.
    ///
    /// # Errors
    /// It is gone, or the change is refused.
    pub(crate) fn change_config(
        &self,
        id: &str,
        change: impl FnOnce(&mut ContainerConfig) -> Result<(), EngineError>,
    ) -> Result<Container, EngineError> {
        self.write(Durability::Host, |db| {
            let row = db.query_row(&format!("{COLUMNS} WHERE id = ?1"), [id], columns).optional()?;
            let mut found = container(row.ok_or_else(|| EngineError::NoContainer(id.to_owned()))?)?;
            change(&mut found.config)?;
            db.execute(
                "UPDATE containers SET config = ?2 WHERE id = ?1",
                params![id, encode(&found.config)?],
            )?;
            Ok(found)
        })
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is taken, or the container is gone.
    pub(crate) fn rename_container(&self, id: &str, name: &str) -> Result<(), EngineError> {
        self.write(Durability::Host, |db| {
            let taken: Option<String> = db
                .query_row("SELECT id FROM containers WHERE name = ?1", [name], |row| row.get(0))
                .optional()?;
            if let Some(id) = taken {
                return Err(EngineError::NameTaken { name: name.to_owned(), id });
            }
            match db.execute("UPDATE containers SET name = ?2 WHERE id = ?1", params![id, name])? {
                0 => Err(EngineError::NoContainer(id.to_owned())),
                _ => Ok(()),
            }
        })
    }

    /// Forgets a container and its further processes. True if it was there.
    pub(crate) fn delete_container(&self, id: &str) -> Result<bool, EngineError> {
        self.write(Durability::Process, |db| {
            db.execute("DELETE FROM execs WHERE container = ?1", [id])?;
            Ok(db.execute("DELETE FROM containers WHERE id = ?1", [id])? > 0)
        })
    }
}

type Columns = (String, String, i64, String, String);

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn container((id, name, created, config, state): Columns) -> Result<Container, EngineError> {
    Ok(Container { id, name, created, config: decode(&config)?, state: decode(&state)? })
}
