//! What a container's configuration wants at its end, and of its health.

use std::time::Duration;

use crate::EngineError;
use crate::model::{Container, ContainerConfig, HealthCheck, Outcome, RestartPolicy};

/// Delay before the first restart; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay before a restart.
const LAST_DELAY: Duration = Duration::from_secs(60);
/// A container that ran so long is started again without delay's growth.
const SETTLED: Duration = Duration::from_secs(10);

/// Whether the container is started again, and after how long.
pub(super) fn restarts(
    container: &Result<Container, EngineError>,
    outcome: &Outcome,
    stopped: bool,
    ran: Duration,
) -> Option<Duration> {
    let container = container.as_ref().ok()?;
    let before = container.state.restarts;
    let wanted = match container.config.restart {
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure { maximum } => outcome.code != 0 && (maximum == 0 || before < maximum),
    };
    if !wanted || stopped || container.config.auto_remove {
        return None;
    }
    if ran >= SETTLED {
        return Some(FIRST_DELAY);
    }
    Some(FIRST_DELAY.saturating_mul(1u32.checked_shl(before.min(16)).unwrap_or(u32::MAX)).min(LAST_DELAY))
}

/// The container's health check, if it has one.
pub(super) fn health_check(config: &ContainerConfig) -> Option<&HealthCheck> {
    let check = config.health_check.as_ref()?;
    let wanted = check.test.first().is_some_and(|kind| kind != "NONE");
    wanted.then_some(check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::State;

    fn container(restart: RestartPolicy, restarts: u32) -> Result<Container, EngineError> {
        Ok(Container {
            id: String::new(),
            name: String::new(),
            created: 0,
            config: ContainerConfig { restart, ..ContainerConfig::default() },
            state: State { restarts, ..State::default() },
        })
    }

    #[test]
    fn restarts_follow_the_policy_with_growing_delays() {
        let (good, bad) = (Outcome::default(), Outcome { code: 1, ..Outcome::default() });
        let short = Duration::from_millis(5);
        let after = |policy, times, outcome: &Outcome, stopped| {
            restarts(&container(policy, times), outcome, stopped, short).map(|d| d.as_millis())
        };
        assert_eq!(after(RestartPolicy::No, 0, &bad, false), None);
        assert_eq!(after(RestartPolicy::Always, 0, &good, false), Some(100));
        assert_eq!(after(RestartPolicy::Always, 3, &good, false), Some(800));
        assert_eq!(after(RestartPolicy::Always, 1000, &good, false), Some(60_000));
        assert_eq!(after(RestartPolicy::UnlessStopped, 0, &good, true), None);
        let twice = RestartPolicy::OnFailure { maximum: 2 };
        assert_eq!(after(twice, 0, &good, false), None);
        assert_eq!(after(twice, 1, &bad, false), Some(200));
        assert_eq!(after(twice, 2, &bad, false), None);
        assert_eq!(after(RestartPolicy::OnFailure { maximum: 0 }, 9, &bad, false), Some(51_200));
        let long = restarts(&container(RestartPolicy::Always, 9), &good, false, SETTLED);
        assert_eq!(long, Some(FIRST_DELAY));
    }
}
