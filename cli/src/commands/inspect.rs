//! `inspect`: everything that is known of containers, images, volumes and networks.

use api::client::{Client, ClientError, Target};
use clap::Args;
use serde_json::Value;

use crate::complete;
use crate::failure::Failure;
use crate::{format, report};

/// Not found.
const NOT_FOUND: u16 = 404;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// json, or a template such as '{{.State.Status}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Ask for the size on disk, too (containers)
    #[arg(short, long)]
    size: bool,
    /// Kind of what is named: container, image, volume or network
    #[arg(long, value_name = "KIND")]
    r#type: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME", add = complete::anything())]
    names: Vec<String>,
}

/// A kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Container,
    Image,
    Volume,
    Network,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Container, Self::Image, Self::Volume, Self::Network];

    fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }

    fn target(self, name: &str, size: bool) -> Target {
        match self {
            Self::Container => Target::new(["containers", name, "json"]).with("size", u8::from(size)),
            Self::Image => Target::new(["images", name, "json"]),
            Self::Volume => Target::new(["volumes", name]),
            Self::Network => Target::new(["networks", name]),
        }
    }
}

/// Inspects things of one kind, or of whichever kind has the name.
pub async fn execute(client: &Client, args: &Inspect, kind: Option<Kind>) -> Result<u8, Failure> {
    let kind = match (kind, args.r#type.as_deref()) {
        (Some(kind), _) => Some(kind),
        (None, None | Some("")) => None,
        (None, Some(word)) => {
            let known = Kind::ALL.into_iter().find(|kind| kind.word() == word);
            Some(known.ok_or_else(|| {
                let next = "use container, image, volume or network";
                Failure::option("--type", word, "there is no kind of that name", next)
            })?)
        }
    };
    // A template that is none is told before anything is asked.
    if let Some(template) = args.format.as_deref().filter(|text| *text != "json") {
        format::parse(template)?;
    }
    let (mut found, mut code) = (Vec::new(), 0);
    for name in &args.names {
        match find(client, name, kind, args.size).await {
            Ok(value) => found.push(value),
            Err(error) => code = report::error(&error).min(1),
        }
    }
    format::inspected(args.format.as_deref(), &found)?;
    Ok(code)
}

async fn find(client: &Client, name: &str, kind: Option<Kind>, size: bool) -> Result<Value, Failure> {
    let kinds = kind.as_ref().map_or(Kind::ALL.as_slice(), std::slice::from_ref);
    let mut missing: Option<ClientError> = None;
    for kind in kinds {
        match client.get::<Value>(&kind.target(name, size)).await {
            Ok(value) => return Ok(value),
            // What is no name of an image can be one of something else.
            Err(error)
                if error.status() == Some(NOT_FOUND) || (kinds.len() > 1 && error.status() == Some(400)) =>
            {
                missing.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    match missing {
        Some(error) if kinds.len() == 1 => Err(error.into()),
        _ => Err(engine::EngineError::Option {
            option: format!("inspect {name}"),
            why: "no container, image, volume or network has this name or id".to_owned(),
            next: "bulkhead ps -a, bulkhead images".to_owned(),
        }
        .into()),
    }
}
