//! Volumes and networks in the database.

use rusqlite::{OptionalExtension, params};

use super::{Database, Durability, decode, encode};
use crate::EngineError;
use crate::model::{Network, Volume};

impl Database {
    /// Writes a volume down; one that is there already stays, and is returned.
    pub(crate) fn insert_volume(&self, volume: &Volume) -> Result<Volume, EngineError> {
        let text = encode(volume)?;
        self.write(Durability::Host, |db| {
            db.execute(
                "INSERT OR IGNORE INTO volumes (name, document) VALUES (?1, ?2)",
                params![volume.name, text],
            )?;
            let there: String =
                db.query_row("SELECT document FROM volumes WHERE name = ?1", [&volume.name], |row| {
                    row.get(0)
                })?;
            decode(&there)
        })
    }

    /// All volumes by name.
    pub(crate) fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT document FROM volumes ORDER BY name")?;
        let rows = query.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|text| decode(&text?)).collect()
    }

    /// One volume.
    pub(crate) fn volume(&self, name: &str) -> Result<Volume, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT document FROM volumes WHERE name = ?1")?;
        let text: Option<String> = query.query_row([name], |row| row.get(0)).optional()?;
        decode(&text.ok_or_else(|| EngineError::NoVolume(name.to_owned()))?)
    }

    /// Forgets a volume. True if it was there.
    pub(crate) fn delete_volume(&self, name: &str) -> Result<bool, EngineError> {
        self.write(Durability::Host, |db| Ok(db.execute("DELETE FROM volumes WHERE name = ?1", [name])? > 0))
    }

    /// Writes a network down.
    ///
    /// # Errors
    /// Its name is taken.
    pub(crate) fn insert_network(&self, network: &Network) -> Result<(), EngineError> {
        let text = encode(network)?;
        self.write(Durability::Host, |db| {
            let put = "INSERT OR IGNORE INTO networks (id, name, document) VALUES (?1, ?2, ?3)";
            match db.execute(put, params![network.id, network.name, text])? {
                0 => Err(EngineError::Conflict(format!("network with name {} already exists", network.name))),
                _ => Ok(()),
            }
        })
    }

    /// All networks, oldest first.
    pub(crate) fn networks(&self) -> Result<Vec<Network>, EngineError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT document FROM networks ORDER BY rowid")?;
        let rows = query.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|text| decode(&text?)).collect()
    }

    /// Forgets a network. True if it was there.
    pub(crate) fn delete_network(&self, id: &str) -> Result<bool, EngineError> {
        self.write(Durability::Host, |db| Ok(db.execute("DELETE FROM networks WHERE id = ?1", [id])? > 0))
    }
}
