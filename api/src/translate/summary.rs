//! A container as `ps` lists it.

use bollard_stubs::models::{
    ContainerSummary, ContainerSummaryHostConfig, ContainerSummaryNetworkSettings, ContainerSummaryStateEnum,
};
use engine::Engine;
use engine::model::{Container, HealthStatus, Status, now};

use super::{health, inspect, mounts, network, ports};
use crate::times;

/// One line of the list.
#[must_use]
pub fn show(container: &Container, engine: &Engine) -> ContainerSummary {
    let config = &container.config;
    ContainerSummary {
        id: Some(container.id.clone()),
        names: Some(vec![format!("/{}", container.name)]),
        image: Some(config.image.clone()),
        image_id: Some(config.image_id.clone()),
        command: Some(command(&inspect::command(config))),
        created: Some(container.created / 1_000_000_000),
        ports: Some(ports::list(container)),
        labels: Some(config.labels.clone().into_iter().collect()),
        state: Some(match container.state.status {
            Status::Created => ContainerSummaryStateEnum::CREATED,
            Status::Running => ContainerSummaryStateEnum::RUNNING,
            Status::Paused => ContainerSummaryStateEnum::PAUSED,
            Status::Restarting => ContainerSummaryStateEnum::RESTARTING,
            Status::Exited => ContainerSummaryStateEnum::EXITED,
            Status::Removing => ContainerSummaryStateEnum::REMOVING,
            Status::Dead => ContainerSummaryStateEnum::DEAD,
        }),
        status: Some(status(container, now())),
        host_config: Some(ContainerSummaryHostConfig {
            network_mode: Some(config.network_mode.clone()),
            annotations: None,
        }),
        network_settings: Some(ContainerSummaryNetworkSettings {
            networks: Some(network::endpoints(container)),
        }),
        mounts: Some(mounts::points(container, engine)),
        ..ContainerSummary::default()
    }
}

/// A command in one line, words with spaces in quotes.
fn command(words: &[String]) -> String {
    let word = |word: &String| {
        if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.clone() }
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The status as people read it: "Up 5 minutes (healthy)", "Exited (0) 3 seconds ago".
#[must_use]
pub fn status(container: &Container, now: i64) -> String {
    let state = &container.state;
    let code = state.outcome.as_ref().map_or(0, |outcome| outcome.code);
    let since = |time: i64| times::human(now.saturating_sub(time));
    match state.status {
        Status::Created => "Created".into(),
        Status::Removing => "Removal In Progress".into(),
        Status::Dead => "Dead".into(),
        Status::Exited => format!("Exited ({code}) {} ago", since(state.finished)),
        Status::Restarting => format!("Restarting ({code}) {} ago", since(state.finished)),
        Status::Paused => format!("Up {} (Paused)", since(state.started)),
        Status::Running => match state.health.as_ref().map(|health| health.status) {
            None => format!("Up {}", since(state.started)),
            Some(HealthStatus::Starting) => format!("Up {} (health: starting)", since(state.started)),
            Some(word) => format!("Up {} ({})", since(state.started), health::word(word)),
        },
    }
}

#[cfg(test)]
mod tests {
    use engine::model::{ContainerConfig, Health, Outcome, State};

    use super::*;

    #[test]
    fn statuses_are_told_as_docker_tells_them() {
        let second = 1_000_000_000;
        let mut container = Container {
            id: "f".repeat(64),
            name: "web".into(),
            created: second,
            config: ContainerConfig::default(),
            state: State { started: 10 * second, finished: 20 * second, ..State::default() },
        };
        let mut told = |status: Status, health: Option<HealthStatus>| {
            container.state.status = status;
            container.state.health = health.map(|status| Health { status, ..Health::default() });
            container.state.outcome = Some(Outcome { code: 3, ..Outcome::default() });
            super::status(&container, 30 * second)
        };
        assert_eq!(told(Status::Created, None), "Created");
        assert_eq!(told(Status::Running, None), "Up 20 seconds");
        assert_eq!(told(Status::Running, Some(HealthStatus::Starting)), "Up 20 seconds (health: starting)");
        assert_eq!(told(Status::Running, Some(HealthStatus::Unhealthy)), "Up 20 seconds (unhealthy)");
        assert_eq!(told(Status::Paused, None), "Up 20 seconds (Paused)");
        assert_eq!(told(Status::Exited, None), "Exited (3) 10 seconds ago");
        assert_eq!(told(Status::Restarting, None), "Restarting (3) 10 seconds ago");
        assert_eq!(command(&["sh".into(), "-c".into(), "echo hi".into()]), "sh -c 'echo hi'");
    }
}
