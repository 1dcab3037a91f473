//! `bulkhead`: containers, each in its own microVM.

mod args;
mod commands;
mod report;

use std::process::ExitCode;

use clap::Parser;

/// STUB: `serve` and `supervise` until the command line has them.
fn stub() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("supervise") => {
            let paths = engine::paths::Paths::from_environment().ok()?;
            let ok = engine::supervisor::supervise(paths, args.get(2)?).is_ok();
            Some(ExitCode::from(u8::from(!ok)))
        }
        Some("serve") => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().ok()?;
            let result = runtime.block_on(async {
                let paths = engine::paths::Paths::from_environment().map_err(|e| e.to_string())?;
                let engine = engine::Engine::open(paths).map_err(|e| e.to_string())?;
                let mut options = api::Options::default();
                let mut rest = args[2..].iter();
                while let Some(flag) = rest.next() {
                    let value = rest.next().ok_or("no value")?;
                    match flag.as_str() {
                        "-H" => options.addresses.push(value.parse().map_err(|e: api::server::ServeError| e.to_string())?),
                        "--token" => options.token = Some(value.into()),
                        "--tls" => {
                            let dir = std::path::Path::new(value);
                            options.tls = Some(api::server::TlsFiles {
                                authority: dir.join("ca.pem"),
                                certificate: dir.join("cert.pem"),
                                key: dir.join("key.pem"),
                            });
                        }
                        _ => return Err(format!("no {flag}")),
                    }
                }
                let listeners = options.bind().await.map_err(|e| e.to_string())?;
                let end = async {
                    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
                    term.recv().await;
                };
                api::serve(engine, listeners, end).await.map_err(|e| e.to_string())
            });
            if let Err(error) = result {
                eprintln!("bulkhead: {error}");
                return Some(ExitCode::FAILURE);
            }
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn main() -> ExitCode {
    if let Some(code) = stub() {
        return code;
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    match commands::execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => report::error(&error),
    }
}
