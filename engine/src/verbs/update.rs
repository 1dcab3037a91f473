//! `rename` and `update`: what may change of a container.

use crate::model::{Limits, RestartPolicy};
use crate::supervisor::wire::Ask;
use crate::{Engine, EngineError, events, names, options};

impl Engine {
    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is malformed or taken.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), EngineError> {
        names::check(new)?;
        let container = self.container(name)?;
        let new = new.trim_start_matches('/');
        if container.name == new {
            return Err(EngineError::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        self.database().rename_container(&container.id, new)?;
        let renamed = self.container(&container.id)?;
        self.record(&events::of_container(&renamed, "rename", &[("oldName", format!("/{}", container.name))]))
    }

    /// Changes what a container may use, and what follows its end. Absent limits stay. Returns what its owner should know.
    ///
    /// # Errors
    /// A limit is out of range or does not fit in its machine.
    pub async fn update(
        &self,
        name: &str,
        limits: Limits,
        restart: Option<RestartPolicy>,
    ) -> Result<Vec<String>, EngineError> {
        let container = self.container(name)?;
        if limits.memory.is_some_and(|memory| memory > 0 && memory < options::MIN_MEMORY_BYTES) {
            return Err(EngineError::Invalid("Minimum memory limit allowed is 6MB".to_owned()));
        }
        let running = container.state.status.is_running();
        let before =
            container.config.limits.memory.filter(|m| *m > 0).unwrap_or(options::DEFAULT_MEMORY_BYTES);
        if running && limits.memory.is_some_and(|memory| memory > before) {
            return Err(EngineError::Option {
                option: "--memory".to_owned(),
                why: "a running machine has the memory that it was started with".to_owned(),
                next: "stop the container, update it, and start it again".to_owned(),
            });
        }
        if running {
            self.ask(&container, &Ask::Update { limits: limits.clone() }).await?;
        }
        let changed = self.database().change_config(&container.id, |config| {
            overlay(&mut config.limits, limits);
            if let Some(restart) = restart {
                if config.auto_remove && restart != RestartPolicy::No {
                    return Err(EngineError::Conflict(
                        "Restart policy cannot be updated because AutoRemove is enabled for the container"
                            .to_owned(),
                    ));
                }
                config.restart = restart;
            }
            Ok(())
        })?;
        self.record(&events::of_container(&changed, "update", &[]))?;
        Ok(Vec::new())
    }
}

/// What is given wins, what is absent stays.
pub(crate) fn overlay(limits: &mut Limits, given: Limits) {
    fn set<T>(place: &mut Option<T>, given: Option<T>) {
        if given.is_some() {
            *place = given;
        }
    }
    set(&mut limits.memory, given.memory);
    set(&mut limits.memory_reservation, given.memory_reservation);
    set(&mut limits.nano_cpus, given.nano_cpus);
    set(&mut limits.cpu_quota, given.cpu_quota);
    set(&mut limits.cpu_period, given.cpu_period);
    set(&mut limits.cpu_shares, given.cpu_shares);
    set(&mut limits.cpuset, given.cpuset);
    set(&mut limits.pids, given.pids);
    set(&mut limits.read_bps, given.read_bps);
    set(&mut limits.write_bps, given.write_bps);
    set(&mut limits.read_iops, given.read_iops);
    set(&mut limits.write_iops, given.write_iops);
}
