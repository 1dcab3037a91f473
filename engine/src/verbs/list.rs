//! Looking at containers.

use agent::protocol::{Answer, Call, PathStat, ProcessList, Stats};

use crate::engine::unexpected;
use crate::model::Container;
use crate::supervisor::wire::{Ask, Reply};
use crate::{Engine, EngineError, truth};

impl Engine {
    /// All containers, newest first, each with the truth about its state.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let all = self.database().containers()?;
        all.into_iter()
            .filter_map(|container| truth::correct(self.database(), self.paths(), container).transpose())
            .collect()
    }

    /// One container, by id, name or unambiguous beginning of its id.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn container(&self, name: &str) -> Result<Container, EngineError> {
        let found = self.database().container(name)?;
        truth::correct(self.database(), self.paths(), found)?
            .ok_or_else(|| EngineError::NoContainer(name.to_owned()))
    }

    /// Ids of a container's further processes.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn execs_of(&self, container: &Container) -> Result<Vec<String>, EngineError> {
        self.database().execs_of(&container.id)
    }

    /// The processes of a container that runs.
    ///
    /// # Errors
    /// It does not run.
    pub async fn processes(&self, name: &str) -> Result<ProcessList, EngineError> {
        match self.look(name, Call::Processes).await? {
            (_, Answer::Processes(list)) => Ok(list),
            (container, _) => Err(unexpected(&container)),
        }
    }

    /// The accounts of a container that runs.
    ///
    /// # Errors
    /// It does not run.
    pub async fn stats(&self, name: &str) -> Result<Stats, EngineError> {
        match self.look(name, Call::Stats).await? {
            (_, Answer::Stats(stats)) => Ok(*stats),
            (container, _) => Err(unexpected(&container)),
        }
    }

    /// A path of a container, whether it runs or not.
    ///
    /// # Errors
    /// There is no such path.
    pub async fn path_stat(&self, name: &str, path: &str) -> Result<PathStat, EngineError> {
        match self.look(name, Call::StatPath { path: path.to_owned() }).await? {
            (_, Answer::PathStat(stat)) => Ok(stat),
            (container, _) => Err(unexpected(&container)),
        }
    }

    async fn look(&self, name: &str, call: Call) -> Result<(Container, Answer), EngineError> {
        let ask = Ask::Look { call: Box::new(call) };
        let container = self.container(name)?;
        let running = container.state.status.is_running();
        let reply = match &ask {
            Ask::Look { call } if matches!(**call, Call::Processes | Call::Stats) && !running => {
                return Err(EngineError::NotRunning(name.to_owned()));
            }
            _ => self.ask(&container, &ask).await?,
        };
        match reply {
            Reply::Answer(answer) => Ok((container, *answer)),
            _ => Err(unexpected(&container)),
        }
    }
}
