//! Events in the database.

use rusqlite::params;

use super::{Database, Durability, decode, encode};
use crate::EngineError;
use crate::model::Event;

/// Events that are kept; older ones are forgotten.
const KEPT: i64 = 4096;
/// How often (in events) the older ones are looked for.
const TRIM_EVERY: i64 = 256;
/// Most events read at a time.
const BATCH: usize = 512;

impl Database {
    /// Writes an event down, and gives it its place.
    pub(crate) fn insert_event(&self, event: &Event) -> Result<(), EngineError> {
        let text = encode(event)?;
        self.write(Durability::Process, |db| {
            db.execute("INSERT INTO events (time, document) VALUES (?1, ?2)", params![event.time, text])?;
            let sequence = db.last_insert_rowid();
            if sequence % TRIM_EVERY == 0 {
                db.execute("DELETE FROM events WHERE sequence <= ?1", [sequence - KEPT])?;
            }
            Ok(())
        })
    }

    /// The place of the newest event.
    pub(crate) fn last_event(&self) -> Result<i64, EngineError> {
        let connection = self.lock();
        Ok(connection.query_row("SELECT coalesce(max(sequence), 0) FROM events", [], |row| row.get(0))?)
    }

    /// Events after a place and not before a time, in order, some at a time.
    pub(crate) fn events(&self, after: i64, since: i64) -> Result<Vec<Event>, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(&format!(
            "SELECT sequence, document FROM events WHERE sequence > ?1 AND time >= ?2 ORDER BY sequence LIMIT {BATCH}"
        ))?;
        let rows =
            query.query_map(params![after, since], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (sequence, text) = row?;
            Ok(Event { sequence, ..decode::<Event>(&text)? })
        })
        .collect()
    }
}
