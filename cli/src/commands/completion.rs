//! `completion`: what a shell has to be told once.

use std::io;

use clap::Args;
use clap_complete::env::Shells;

use crate::failure::Failure;
use crate::output;

/// The variable by which a shell asks for names.
pub const VARIABLE: &str = "COMPLETE";

/// Options of `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// bash, zsh, fish, powershell or elvish
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish", "powershell", "elvish"])]
    shell: String,
}

pub fn execute(args: &Completion) -> Result<u8, Failure> {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| {
        let next = "use bash, zsh, fish, powershell or elvish";
        Failure::option("completion", &args.shell, "there is no shell of that name", next)
    })?;
    let mut script = Vec::new();
    let written: io::Result<()> =
        shell.write_registration(VARIABLE, "bulkhead", "bulkhead", "bulkhead", &mut script);
    written.map_err(Failure::io("writing the script"))?;
    output::write(&script);
    Ok(0)
}
