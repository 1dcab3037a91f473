//! What is watched while a container runs: its health, and kills for lack of memory.

use std::rc::Rc;
use std::time::Duration;

use super::Supervisor;
use super::policy;
use super::run::Run;
use crate::model::{Exec, ExecConfig, HealthCheck, HealthResult, HealthStatus, Status, now};
use crate::{EngineError, ids};

/// Most bytes of a check's output that are kept.
const MAX_OUTPUT: usize = 4096;
/// Checks that are remembered.
const KEPT: usize = 5;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

fn or(nanoseconds: i64, default: Duration) -> Duration {
    match u64::try_from(nanoseconds) {
        Ok(n @ 1..) => Duration::from_nanos(n),
        _ => default,
    }
}

/// Checks the container's health until it ends, if it is to be checked.
pub(super) async fn watch(supervisor: Rc<Supervisor>, run: Rc<Run>) {
    let Some(check) = policy::health_check(&run.container.config).cloned() else { return };
    let began = tokio::time::Instant::now();
    let mut over = run.over.subscribe();
    loop {
        let young = began.elapsed() < or(check.start_period, Duration::ZERO);
        let starting = young
            && supervisor
                .container()
                .is_ok_and(|c| c.state.health.is_none_or(|health| health.status == HealthStatus::Starting));
        let interval =
            if starting { or(check.start_interval, START_INTERVAL) } else { or(check.interval, INTERVAL) };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = over.wait_for(|over| *over) => return,
        }
        if supervisor.container().is_ok_and(|c| c.state.status == Status::Paused) {
            continue;
        }
        let result = tokio::select! {
            result = one(&supervisor, &run, &check) => result,
            _ = over.wait_for(|over| *over) => return,
        };
        let young = began.elapsed() < or(check.start_period, Duration::ZERO);
        if let Err(error) = remember(&supervisor, &check, result, young) {
            tracing::error!(%error, "the container's health cannot be written");
        }
    }
}

async fn one(supervisor: &Supervisor, run: &Run, check: &HealthCheck) -> HealthResult {
    let start = now();
    let timeout = or(check.timeout, TIMEOUT);
    let exec = Exec {
        id: ids::random().unwrap_or_default(),
        container: supervisor.id.clone(),
        config: ExecConfig { cmd: command(check), stdout: true, stderr: true, ..ExecConfig::default() },
        started: true,
        running: true,
        exit_code: None,
    };
    let ran = tokio::time::timeout(timeout, supervisor.run_check(run, &exec, MAX_OUTPUT)).await;
    let (exit_code, output) = match ran {
        Ok(Ok((status, output))) => (i32::from(status.code()), String::from_utf8_lossy(&output).into_owned()),
        Ok(Err(error)) => (-1, crate::truth::one_line(&error)),
        Err(_) => (-1, format!("Health check exceeded timeout ({timeout:?})")),
    };
    HealthResult { start, end: now(), exit_code, output }
}

fn command(check: &HealthCheck) -> Vec<String> {
    match check.test.split_first() {
        Some((kind, words)) if kind == "CMD-SHELL" => {
            ["/bin/sh", "-c"].into_iter().map(str::to_owned).chain(words.iter().cloned()).collect()
        }
        Some((_, words)) => words.to_vec(),
        None => Vec::new(),
    }
}

fn remember(
    supervisor: &Supervisor,
    check: &HealthCheck,
    result: HealthResult,
    young: bool,
) -> Result<(), EngineError> {
    let retries = if check.retries == 0 { RETRIES } else { check.retries };
    let mut changed = None;
    let container = supervisor.change(|container| {
        let health = container.state.health.get_or_insert_default();
        let before = health.status;
        if result.exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else if !(young && before == HealthStatus::Starting) {
            health.failing_streak += 1;
            if health.failing_streak >= retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        health.log.push(result);
        let surplus = health.log.len().saturating_sub(KEPT);
        health.log.drain(..surplus);
        changed = (health.status != before).then_some(health.status);
    })?;
    if let Some(status) = changed {
        let word = match status {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        };
        supervisor.event(&container, &format!("health_status: {word}"), &[]);
    }
    Ok(())
}

/// Tells of kills for lack of memory, until the container ends.
pub(super) async fn watch_memory(supervisor: Rc<Supervisor>, run: Rc<Run>) {
    let mut kills = run.booted.guest.oom_kills.subscribe();
    let mut over = run.over.subscribe();
    loop {
        tokio::select! {
            changed = kills.changed() => {
                if changed.is_err() {
                    return;
                }
                supervisor.event(&run.container, "oom", &[]);
            }
            _ = over.wait_for(|over| *over) => return,
        }
    }
}
