//! `create`: writes a container down. Nothing is started, and no disk is made yet.

use image_unpack::{Image, Platform, Source};

use crate::directory::Directory;
use crate::model::{Container, ContainerConfig, Endpoint, HealthCheck, State, now};
use crate::names;
use crate::spec;
use crate::{Engine, EngineError, disk, events, ids, options, signals, truth};

/// Tries to find a free name before an id's beginning is taken for one.
const NAME_TRIES: usize = 16;

/// A container that was created.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The container.
    pub container: Container,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// What executes containers on this host and why, if that was found out just now: said once.
    pub notice: Option<String>,
}

impl Engine {
    /// Creates a container; `name`: its name, else one is made up.
    ///
    /// # Errors
    /// The image is not in the store, the name is taken or malformed, or an option cannot be had.
    pub async fn create(
        &self,
        name: Option<String>,
        config: ContainerConfig,
    ) -> Result<Created, EngineError> {
        if let Some(name) = &name {
            names::check(name)?;
        }
        let engine = self.clone();
        // Finding the image may read an archive.
        let made = tokio::task::spawn_blocking(move || engine.create_now(name, config)).await;
        made.map_err(|e| EngineError::Conflict(format!("the container could not be created: {e}")))?
    }

    fn create_now(&self, name: Option<String>, mut config: ContainerConfig) -> Result<Created, EngineError> {
        let _making = truth::making(self.paths())?;
        // What this host cannot give is told before an image is fetched for it.
        self.check_host(&config)?;
        let image = self.image_of(&config)?;
        let health = self.image_health(&image);
        config.image_id = image.id.to_string();
        spec::merge(&mut config, &image.config, health)?;
        self.check(&config)?;
        self.attach_networks(&mut config)?;
        self.make_volumes(&mut config)?;
        let id = ids::random()?;
        let directory = Directory::new(&self.paths().containers(), &id);
        directory.create()?;
        let container =
            Container { id, name: String::new(), created: now(), config, state: State::default() };
        let container = match self.insert(container, name) {
            Ok(container) => container,
            Err(error) => {
                directory.remove()?;
                return Err(error);
            }
        };
        self.record(&events::of_container(&container, "create", &[]))?;
        Ok(Created { container, warnings: Vec::new(), notice: self.notice() })
    }

    fn insert(&self, mut container: Container, name: Option<String>) -> Result<Container, EngineError> {
        if let Some(name) = name {
            container.name = name.trim_start_matches('/').to_owned();
            self.database().insert_container(&container)?;
            return Ok(container);
        }
        for _ in 0..NAME_TRIES {
            container.name = names::made_up()?;
            match self.database().insert_container(&container) {
                Err(EngineError::NameTaken { .. }) => {}
                other => return other.map(|()| container),
            }
        }
        container.name = container.id.chars().take(12).collect();
        self.database().insert_container(&container).map(|()| container)
    }

    /// The image that a configuration names: a name, an id, or a local source.
    fn image_of(&self, config: &ContainerConfig) -> Result<Image, EngineError> {
        let name = config.image.as_str();
        let failed = |source: image_unpack::Error| match source {
            image_unpack::Error::NotFound { .. } => EngineError::NoImage(name.to_owned()),
            source => EngineError::Image { name: name.to_owned(), source: Box::new(source) },
        };
        let platform = match config.platform.as_str() {
            "" => Platform::host(),
            text => text.parse().map_err(failed)?,
        };
        match name.parse::<Source>().map_err(failed)? {
            Source::Registry(_) => self.images().find(name).map_err(failed),
            local => self
                .images()
                .cached(&local, &platform)
                .map_err(failed)?
                .ok_or_else(|| EngineError::NoImage(name.to_owned())),
        }
    }

    /// The image's health check, which only Docker's images have.
    fn image_health(&self, image: &Image) -> Option<HealthCheck> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        #[derive(Default)]
        struct Written {
            test: Vec<String>,
            interval: i64,
            timeout: i64,
            start_period: i64,
            start_interval: i64,
            retries: u32,
        }
        let document = self.images().inspect(image.id).ok()?;
        let written = document.config.get("Healthcheck").cloned()?;
        let w: Written = serde_json::from_value(written).ok()?;
        Some(HealthCheck {
            test: w.test,
            interval: w.interval,
            timeout: w.timeout,
            start_period: w.start_period,
            start_interval: w.start_interval,
            retries: w.retries,
        })
    }

    /// Everything that would fail at the start fails now, before anything is created.
    fn check(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        signals::stop_signal(config.stop_signal.as_deref())?;
        spec::seccomp(config)?;
        spec::rlimits(&config.ulimits)?;
        crate::network::rules::egress(&config.labels)?;
        crate::network::rules::limits(&config.labels)?;
        let refuse = |option: String, why: String, next: &str| {
            Err(EngineError::Option { option, why, next: next.to_owned() })
        };
        if let Some(memory) = config.limits.memory.filter(|m| *m > 0 && *m < options::MIN_MEMORY_BYTES) {
            let why = "the least memory of a container is 6 MiB".to_owned();
            return refuse(format!("--memory {memory}"), why, "give a size such as 256m");
        }
        if let Some(size) = config.storage_size.filter(|size| *size < disk::MIN_WRITABLE_BYTES) {
            let why = format!("the least disk of a container is {} MiB", disk::MIN_WRITABLE_BYTES >> 20);
            return refuse(format!("--storage-opt size={size}"), why, "give a size such as 10G");
        }
        if config.workdir.as_ref().is_some_and(|dir| !dir.is_empty() && !dir.starts_with('/')) {
            return Err(EngineError::Invalid(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                config.workdir.clone().unwrap_or_default()
            )));
        }
        if config.auto_remove && config.restart != crate::model::RestartPolicy::No {
            return Err(EngineError::Invalid(
                "can't create 'AutoRemove' container with restart policy".to_owned(),
            ));
        }
        crate::share::check(config, self.paths())
    }

    /// An accelerator, an isolation or a size that this host cannot give is refused by its name.
    fn check_host(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        let chosen = self.accelerator(config.accelerator, config.isolation)?;
        crate::machine::MachineSize::new(&config.limits, chosen.accelerator)?;
        self.paths().kernel(chosen.accelerator).map(drop)
    }

    /// Names the networks of a new container by their ids.
    fn attach_networks(&self, config: &mut ContainerConfig) -> Result<(), EngineError> {
        let mode = match config.network_mode.as_str() {
            "" | "default" => "bridge".to_owned(),
            other => other.to_owned(),
        };
        let first = self.network(&mode)?;
        if config.endpoints.is_empty() || !config.endpoints.contains_key(&first.name) {
            let own = config.endpoints.remove(&mode).unwrap_or_default();
            config.endpoints.insert(first.name, own);
        }
        for (name, endpoint) in &mut config.endpoints {
            let network = self.network(name)?;
            *endpoint = Endpoint { network: network.id, ..endpoint.clone() };
        }
        config.network_mode = mode;
        Ok(())
    }
}
