//! Volumes: folders of the state directory that outlive containers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use crate::model::{ContainerConfig, Mount, MountKind, Volume, now};
use crate::{Engine, EngineError, ids, names, volume_disk, volumes};

/// What a new volume is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Its name; made up when absent.
    pub name: Option<String>,
    /// Free names and values.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given; [`size`](Self::size) says what they mean.
    pub options: BTreeMap<String, String>,
    /// Most bytes that it can hold, 64 MiB to 16 TiB; absent: what the host's disk holds. Takes root.
    pub size: Option<u64>,
}

impl Engine {
    /// All volumes by name.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        self.database().volumes()
    }

    /// One volume.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn volume(&self, name: &str) -> Result<Volume, EngineError> {
        self.database().volume(name)
    }

    /// Where a volume's files lie.
    #[must_use]
    pub fn volume_path(&self, volume: &Volume) -> std::path::PathBuf {
        self.paths().volumes().join(&volume.name).join("_data")
    }

    /// Creates a volume; one that is there already is returned as it is.
    ///
    /// # Errors
    /// The name is malformed, or a volume of this size cannot be had here.
    pub fn create_volume(&self, options: VolumeOptions) -> Result<Volume, EngineError> {
        options.size.map_or(Ok(()), volume_disk::check)?;
        if let Some(name) = &options.name {
            names::check_volume(name)?;
        }
        let volume = Volume {
            anonymous: options.name.is_none(),
            name: options.name.map_or_else(ids::random, Ok)?,
            created: now(),
            labels: options.labels,
            options: options.options,
            size: options.size,
        };
        let data = self.volume_path(&volume);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&data)
            .map_err(EngineError::io(format!("making the volume {}", volume.name)))?;
        let there = match volume.size {
            None => self.database().insert_volume(&volume)?,
            Some(bytes) => self.insert_with_disk(&volume, bytes)?,
        };
        if there == volume {
            self.record(&volumes::event(&there, "create"))?;
        }
        Ok(there)
    }

    /// Writes a volume with a size down, once its disk is made.
    fn insert_with_disk(&self, volume: &Volume, bytes: u64) -> Result<Volume, EngineError> {
        let directory = self.paths().volumes().join(&volume.name);
        let _alone = volume_disk::lock(&directory)?;
        match self.database().volume(&volume.name) {
            Err(EngineError::NoVolume(_)) => {}
            there => return there,
        }
        if let Err(error) = volume_disk::create(&directory, bytes, &self.paths().cache_files()) {
            let _ = fs::remove_dir_all(&directory);
            return Err(error);
        }
        self.database().insert_volume(volume)
    }

    /// Removes a volume that no container uses. `force`: one that is not there is no error.
    ///
    /// # Errors
    /// A container uses it.
    pub fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        match volumes::remove(self.database(), self.paths(), name) {
            Err(EngineError::NoVolume(_)) if force => Ok(()),
            other => other,
        }
    }

    /// Ids of the containers that use a volume.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn users_of_volume(&self, name: &str) -> Result<Vec<String>, EngineError> {
        volumes::users(self.database(), name)
    }

    /// Bytes on disk of a volume.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn volume_usage(&self, name: &str) -> Result<u64, EngineError> {
        let volume = self.volume(name)?;
        let usage = match volume.size {
            None => usage(&self.volume_path(&volume)),
            Some(_) => volume_disk::usage(&self.paths().volumes().join(name)),
        };
        usage.map_err(EngineError::io(format!("measuring the volume {name}")))
    }

    /// Makes the volumes that a new container names, and those that its image wants.
    pub(super) fn make_volumes(&self, config: &mut ContainerConfig) -> Result<(), EngineError> {
        for path in config.volumes.clone() {
            let covered = config.mounts.iter().any(|m| m.target == path) || config.tmpfs.contains_key(&path);
            if !covered {
                let volume = self.create_volume(VolumeOptions::default())?;
                let kind = MountKind::Volume;
                let mount =
                    Mount { kind, source: volume.name, target: path, read_only: false, no_copy: false };
                config.mounts.push(mount);
            }
        }
        for mount in config.mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume) {
            let name = Some(mount.source.clone()).filter(|name| !name.is_empty());
            mount.source = self.create_volume(VolumeOptions { name, ..VolumeOptions::default() })?.name;
        }
        Ok(())
    }
}

/// Bytes on disk below a folder. Links are counted, not followed.
fn usage(folder: &Path) -> io::Result<u64> {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}
