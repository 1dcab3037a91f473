//! Health checks.

use bollard_stubs::models::{Health as DockerHealth, HealthConfig, HealthStatusEnum, HealthcheckResult};
use engine::model::{Health, HealthCheck, HealthStatus};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::times;

/// Least interval, time-out and period, in nanoseconds: one millisecond.
const LEAST: i64 = 1_000_000;

/// Reads a `Healthcheck`; `None`: as the image says.
///
/// # Errors
/// It is malformed.
pub fn read(fields: &mut Fields) -> Result<Option<HealthCheck>, ApiError> {
    if fields.is_empty() {
        return Ok(None);
    }
    let retries: i64 = fields.take("Retries")?;
    let check = HealthCheck {
        test: fields.take("Test")?,
        interval: fields.take("Interval")?,
        timeout: fields.take("Timeout")?,
        start_period: fields.take("StartPeriod")?,
        start_interval: fields.take("StartInterval")?,
        retries: u32::try_from(retries)
            .map_err(|_| ApiError::bad("Retries in Healthcheck cannot be negative"))?,
    };
    for (name, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if value != 0 && value < LEAST {
            return Err(ApiError::bad(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    match check.test.first().map(String::as_str) {
        None | Some("" | "NONE" | "CMD" | "CMD-SHELL") => Ok(Some(check)),
        Some(other) => Err(ApiError::bad(format!("Unknown healthcheck type '{other}' (expected 'CMD')"))),
    }
}

/// A check as `inspect` shows it.
#[must_use]
pub fn config(check: &HealthCheck) -> HealthConfig {
    HealthConfig {
        test: (!check.test.is_empty()).then(|| check.test.clone()),
        interval: Some(check.interval).filter(|&n| n != 0),
        timeout: Some(check.timeout).filter(|&n| n != 0),
        start_period: Some(check.start_period).filter(|&n| n != 0),
        start_interval: Some(check.start_interval).filter(|&n| n != 0),
        retries: Some(i64::from(check.retries)).filter(|&n| n != 0),
    }
}

/// A container's health as `inspect` shows it.
#[must_use]
pub fn state(health: &Health) -> DockerHealth {
    let result = |check: &engine::model::HealthResult| HealthcheckResult {
        start: Some(times::rfc3339(check.start)),
        end: Some(times::rfc3339(check.end)),
        exit_code: Some(i64::from(check.exit_code)),
        output: Some(check.output.clone()),
    };
    DockerHealth {
        status: Some(match health.status {
            HealthStatus::Starting => HealthStatusEnum::STARTING,
            HealthStatus::Healthy => HealthStatusEnum::HEALTHY,
            HealthStatus::Unhealthy => HealthStatusEnum::UNHEALTHY,
        }),
        failing_streak: Some(i64::from(health.failing_streak)),
        log: Some(health.log.iter().map(result).collect()),
    }
}

/// The word for it.
#[must_use]
pub fn word(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Starting => "starting",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    }
}
