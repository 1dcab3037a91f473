//! A further process in a running container.

use serde::{Deserialize, Serialize};

/// A further process: created, running or ended. It is forgotten with its container's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// What it is.
    pub config: ExecConfig,
    /// It was started.
    pub started: bool,
    /// It runs.
    pub running: bool,
    /// Its exit code, or 128 plus the signal, once it ended.
    pub exit_code: Option<u8>,
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecConfig {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`, beyond the container's own.
    pub env: Vec<String>,
    /// Absolute path; the container's when absent.
    pub workdir: Option<String>,
    /// `user[:group]`; the container's when absent.
    pub user: Option<String>,
    /// It has a terminal.
    pub tty: bool,
    /// Pass standard input on.
    pub stdin: bool,
    /// Pass standard output back.
    pub stdout: bool,
    /// Pass standard error back.
    pub stderr: bool,
    /// Keys that leave it, such as `ctrl-p,ctrl-q`; kept for the API.
    pub detach_keys: Option<String>,
}
