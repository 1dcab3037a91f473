//! `login` and `logout`: credentials for registries, where Docker keeps them, too.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use api::client::{Client, Target};
use clap::Args;
use image_unpack::{Credentials, DockerConfig};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output;

/// Where one logs in if no registry is named.
const DOCKER_HUB: &str = "docker.io";
/// Most bytes of a password.
const MAX_PASSWORD: u64 = 64 << 10;

/// Options of `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// Password; better given with --password-stdin
    #[arg(short, long, value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The registry, such as registry.example:5000
    #[arg(value_name = "REGISTRY", default_value = DOCKER_HUB)]
    registry: String,
}

/// Options of `logout`.
#[derive(Debug, Args)]
pub struct Logout {
    /// The registry
    #[arg(value_name = "REGISTRY", default_value = DOCKER_HUB)]
    registry: String,
}

pub async fn login(client: &Client, args: &Login) -> Result<u8, Failure> {
    let config = config()?;
    if args.password_stdin && args.username.is_none() {
        let next = "give the name with --username";
        return Err(Failure::option("--password-stdin", "", "there is no user name", next));
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None => asked("Username: ")?,
    };
    let password = match &args.password {
        Some(password) => {
            eprintln!("bulkhead: a password on the command line can be seen by others; use --password-stdin");
            password.clone()
        }
        None if args.password_stdin => {
            let mut text = String::new();
            let read = io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut text);
            read.map_err(Failure::io("reading the password"))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => secret("Password: ")?,
    };
    let body = json!({ "username": user, "password": password, "serveraddress": args.registry });
    let answer: Value = client.post(&Target::new(["auth"]), &body).await?;
    let token = answer["IdentityToken"].as_str().filter(|token| !token.is_empty());
    let credentials = match token {
        Some(token) => Credentials::IdentityToken(token.to_owned()),
        None => Credentials::Password { user, password },
    };
    config.set(&args.registry, &credentials).map_err(|e| unusable(&args.registry, e))?;
    output::line(answer["Status"].as_str().unwrap_or("Login Succeeded"));
    Ok(0)
}

pub fn logout(args: &Logout) -> Result<u8, Failure> {
    let removed = config()?.remove(&args.registry).map_err(|e| unusable(&args.registry, e))?;
    if removed {
        output::line(&format!("Removing login credentials for {}", args.registry));
    } else {
        output::line(&format!("Not logged in to {}", args.registry));
    }
    Ok(0)
}

fn config() -> Result<DockerConfig, Failure> {
    DockerConfig::of_user().ok_or_else(|| {
        let why = "neither DOCKER_CONFIG nor HOME says where credentials are kept";
        Failure::option("login", "", why, "set HOME")
    })
}

fn unusable(registry: &str, source: image_unpack::Error) -> Failure {
    engine::EngineError::Image { name: registry.to_owned(), source: Box::new(source) }.into()
}

/// A line that the person types.
fn asked(question: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        let next = "give --username, and the password with --password-stdin";
        return Err(Failure::option("login", "", "there is no terminal to ask at", next));
    }
    eprint!("{question}");
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(Failure::io("reading the answer"))?;
    Ok(line.trim().to_owned())
}

/// The same, not shown.
fn secret(question: &str) -> Result<String, Failure> {
    let before = tcgetattr(io::stdin()).map_err(|e| Failure::io("reading the password")(e.into()))?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    let set = |modes| tcsetattr(io::stdin(), OptionalActions::Now, modes);
    set(&quiet).map_err(|e| Failure::io("reading the password")(e.into()))?;
    let line = asked(question);
    let _ = set(&before);
    eprintln!();
    line
}
