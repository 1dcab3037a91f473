//! Verbs that look into containers: `top`, `port`, `diff`.

use api::client::{Client, Target};
use clap::Args;
use serde_json::Value;

use super::common::text;
use crate::complete;
use crate::failure::Failure;
use crate::output;
use crate::table::lay_out;

/// Options of `top`.
#[derive(Debug, Args)]
#[command(override_usage = "bulkhead top CONTAINER [PS OPTIONS]...")]
pub struct Top {
    /// The container, then options as of ps(1)
    #[arg(value_name = "CONTAINER", required = true, trailing_var_arg = true, add = complete::containers())]
    container_and_options: Vec<String>,
}

/// Options of `port`.
#[derive(Debug, Args)]
pub struct Port {
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
    /// One port of the container, such as 80/tcp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

pub async fn top(client: &Client, args: &Top) -> Result<u8, Failure> {
    let (container, options) = super::create::split(&args.container_and_options);
    let options = Some(options.join(" ")).filter(|options| !options.is_empty());
    let target = Target::new(["containers", container, "top"]).with_some("ps_args", options);
    let list: Value = client.get(&target).await?;
    let row = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let mut rows = vec![row(&list["Titles"])];
    rows.extend(list["Processes"].as_array().into_iter().flatten().map(row));
    output::write(lay_out(&rows).as_bytes());
    Ok(0)
}

pub async fn port(client: &Client, args: &Port) -> Result<u8, Failure> {
    let shown: Value = client.get(&Target::new(["containers", &args.container, "json"])).await?;
    let wanted =
        args.port.as_ref().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    let mut lines = Vec::new();
    for (port, bindings) in shown["NetworkSettings"]["Ports"].as_object().into_iter().flatten() {
        for binding in bindings.as_array().into_iter().flatten() {
            let ip = Some(text(&binding["HostIp"])).filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0".into());
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            let place = format!("{ip}:{}", text(&binding["HostPort"]));
            match &wanted {
                None => lines.push(format!("{port} -> {place}")),
                Some(wanted) if wanted == port => lines.push(place),
                Some(_) => {}
            }
        }
    }
    if let (true, Some(wanted)) = (lines.is_empty(), wanted) {
        return Err(engine::EngineError::Option {
            option: format!("port {wanted}"),
            why: format!("no public port '{wanted}' published for {}", args.container),
            next: "publish it with -p when the container is created".to_owned(),
        }
        .into());
    }
    lines.iter().for_each(|line| output::line(line));
    Ok(0)
}

pub async fn diff(client: &Client, args: &Diff) -> Result<u8, Failure> {
    let changes: Vec<Value> = client.get(&Target::new(["containers", &args.container, "changes"])).await?;
    for change in changes {
        let kind = match change["Kind"].as_u64() {
            Some(0) => "C",
            Some(1) => "A",
            _ => "D",
        };
        output::line(&format!("{kind} {}", text(&change["Path"])));
    }
    Ok(0)
}
