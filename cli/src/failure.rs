//! Why a command failed, in the three lines that people read.

use std::io;

use api::client::ClientError;
use engine::EngineError;
use engine::error::EXIT_ENGINE;

/// Exit code of a command that failed, as Docker's.
const EXIT_FAILURE: u8 = 1;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server refused, or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What this process does by itself failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// As `source`, of a command whose exit code tells whether a container was started.
    #[error(transparent)]
    Run(Box<Failure>),
}

impl Failure {
    /// A value that an option cannot have.
    pub fn option(option: &str, value: &str, why: impl Into<String>, next: &str) -> Self {
        let option = if value.is_empty() { option.to_owned() } else { format!("{option} {value}") };
        EngineError::Option { option, why: why.into(), next: next.to_owned() }.into()
    }

    /// An answer that is not what was asked for.
    pub fn answer(why: impl Into<String>) -> Self {
        Self::Client(ClientError::Protocol(why.into()))
    }

    /// A failed system call.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let wrap = EngineError::io(action);
        move |error| Self::Engine(wrap(error))
    }

    /// The same, with the exit codes of `run`: 125 if nothing was started, 126 and 127 if the program could not be.
    pub fn of_run(self) -> Self {
        match self {
            Self::Run(_) => self,
            other => Self::Run(Box::new(other)),
        }
    }

    /// Why, and what to do next.
    pub fn advice(&self) -> (String, String) {
        match self {
            Self::Client(error) => error.advice(),
            Self::Engine(error) => {
                let advice = error.advice();
                (advice.why, advice.next)
            }
            Self::Run(source) => source.advice(),
        }
    }

    /// The exit code of a command that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Run(source) => match &**source {
                Self::Client(error) => error.exit_code(),
                Self::Engine(error) => error.exit_code(),
                Self::Run(_) => EXIT_ENGINE,
            },
            _ => EXIT_FAILURE,
        }
    }

    /// The guest's last console lines, if it is about a machine.
    pub fn console(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.console().map(str::to_owned),
            Self::Engine(error) => error.console(),
            Self::Run(source) => source.console(),
        }
    }
}
