//! `images`, also `image ls`; `tag`, `rmi`, `history`.

use api::client::{Client, Method, Target};
use clap::Args;
use serde_json::{Value, json};

use super::common::{ago, date, text, with_filters};
use super::each;
use crate::complete;
use crate::failure::Failure;
use crate::format::Listing;
use crate::output;
use crate::progress::size;
use crate::table::{short_id, shorten};

/// What stands for a name that an image does not have.
const NONE: &str = "<none>";
/// Most characters of an instruction in the table.
const INSTRUCTION_WIDTH: usize = 45;

const IMAGES: Listing<'static> = Listing {
    headings: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
    ],
    columns: &["Repository", "Tag", "ID", "CreatedSince", "Size"],
    quiet: "ID",
};

const HISTORY: Listing<'static> = Listing {
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    columns: &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
    quiet: "ID",
};

/// Options of `images`.
#[derive(Debug, Args)]
pub struct Images {
    /// Show all images; there are no others here
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show only those that pass, such as dangling=true or reference=busy*
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// json, table TEMPLATE, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not cut anything
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show only images of this name
    #[arg(value_name = "NAME[:TAG]", add = complete::images())]
    name: Option<String>,
}

/// Options of `tag`.
#[derive(Debug, Args)]
pub struct Tag {
    /// The image
    #[arg(value_name = "IMAGE", add = complete::images())]
    image: String,
    /// Its further name
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
}

/// Options of `rmi`.
#[derive(Debug, Args)]
pub struct Rmi {
    /// Remove an image of several names by its id, too
    #[arg(short, long)]
    force: bool,
    /// Keep what lies below; here nothing does
    #[arg(long)]
    no_prune: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE", add = complete::images())]
    images: Vec<String>,
}

/// Options of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// json, table TEMPLATE, or a template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Sizes in units that people read
    #[arg(short = 'H', long, value_name = "YES", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Do not cut anything
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Name or id
    #[arg(value_name = "IMAGE", add = complete::images())]
    image: String,
}

pub async fn list(client: &Client, args: &Images) -> Result<u8, Failure> {
    let own: Vec<(&str, &str)> = args.name.iter().map(|name| ("reference", name.as_str())).collect();
    let target = Target::new(["images", "json"]).with("all", u8::from(args.all));
    let images: Vec<Value> = client.get(&with_filters(target, &args.filter, &own)?).await?;
    let columns = ["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"];
    let listing = if args.digests { Listing { columns: &columns, ..IMAGES } } else { IMAGES };
    let rows = images.iter().flat_map(|image| rows(image, args.no_trunc));
    let mut rows: Vec<Value> = rows.collect();
    if args.quiet {
        // An image of several names is one image.
        rows.dedup_by(|a, b| a["ID"] == b["ID"]);
    }
    listing.print(args.format.as_deref(), args.quiet, &rows)?;
    Ok(0)
}

/// A row for each name of an image.
fn rows(image: &Value, whole: bool) -> Vec<Value> {
    let id = text(&image["Id"]);
    let list = |field: &str| image[field].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let digests = list("RepoDigests");
    let created = image["Created"].as_i64().unwrap_or(0);
    let bytes = |number: Option<u64>| number.map_or_else(|| "N/A".to_owned(), size);
    let (all, shared) = (image["Size"].as_u64(), image["SharedSize"].as_u64());
    let mut names: Vec<(String, String)> =
        list("RepoTags").iter().filter_map(|name| name_and_tag(name)).collect();
    if names.is_empty() {
        let bare = digests.first().and_then(|digest| digest.split_once('@')).map_or(NONE, |(name, _)| name);
        names.push((bare.to_owned(), NONE.to_owned()));
    }
    let row = |(name, tag): (String, String)| {
        let digest = digests.iter().filter_map(|d| d.split_once('@')).find(|(of, _)| *of == name);
        json!({
            "Repository": name,
            "Tag": tag,
            "Digest": digest.map_or(NONE, |(_, digest)| digest),
            "ID": if whole { id.as_str() } else { short_id(&id) },
            "CreatedSince": ago(created),
            "CreatedAt": date(created),
            "Size": bytes(all),
            "Containers": image["Containers"].as_i64().filter(|n| *n >= 0).map_or_else(|| "N/A".to_owned(), |n| n.to_string()),
            "SharedSize": bytes(shared),
            "UniqueSize": bytes(all.zip(shared).map(|(all, shared)| all.saturating_sub(shared))),
        })
    };
    names.into_iter().map(row).collect()
}

/// `name:tag` in two; the port of a registry is no tag.
pub fn name_and_tag(name: &str) -> Option<(String, String)> {
    let (bare, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    (bare != NONE).then(|| (bare.to_owned(), tag.to_owned()))
}

pub async fn tag(client: &Client, args: &Tag) -> Result<u8, Failure> {
    let (name, tag) = match name_and_tag(&args.name) {
        Some((name, tag)) => (name, tag),
        None => (args.name.clone(), "latest".to_owned()),
    };
    let target = Target::new(["images", &args.image, "tag"]).with("repo", name).with("tag", tag);
    client.act(Method::POST, &target).await?;
    Ok(0)
}

pub async fn rmi(client: &Client, args: &Rmi) -> Result<u8, Failure> {
    let remove = async |name: &str| {
        let target = Target::new(["images", name])
            .with("force", u8::from(args.force))
            .with("noprune", u8::from(args.no_prune));
        let removed: Vec<Value> = client.ask(Method::DELETE, &target).await?;
        print_removed(&removed);
        Ok(())
    };
    Ok(each(&args.images, remove).await)
}

/// What was removed, a line each.
pub fn print_removed(removed: &[Value]) {
    for item in removed {
        for (field, word) in [("Untagged", "Untagged"), ("Deleted", "Deleted")] {
            if let Some(name) = item[field].as_str() {
                output::line(&format!("{word}: {name}"));
            }
        }
    }
}

pub async fn history(client: &Client, args: &History) -> Result<u8, Failure> {
    let list: Vec<Value> = client.get(&Target::new(["images", &args.image, "history"])).await?;
    let row = |step: &Value| {
        let id = text(&step["Id"]);
        let created = step["Created"].as_i64().unwrap_or(0);
        let by = text(&step["CreatedBy"]).replace('\t', " ");
        let bytes = step["Size"].as_u64().unwrap_or(0);
        json!({
            "ID": if args.no_trunc { id.as_str() } else { short_id(&id) },
            "CreatedSince": if created == 0 { "N/A".to_owned() } else { ago(created) },
            "CreatedAt": if created == 0 { "N/A".to_owned() } else { date(created) },
            "CreatedBy": if args.no_trunc { by } else { shorten(&by, INSTRUCTION_WIDTH) },
            "Size": if args.human { size(bytes) } else { bytes.to_string() },
            "Comment": step["Comment"],
        })
    };
    let rows: Vec<Value> = list.iter().map(row).collect();
    HISTORY.print(args.format.as_deref(), args.quiet, &rows)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let image = json!({
            "Id": format!("sha256:{}", "a".repeat(64)), "Created": 5, "Size": 1000, "SharedSize": -1, "Containers": 2,
            "RepoTags": ["a:1", "localhost:5000/b:2"], "RepoDigests": ["a@sha256:1"],
        });
        let made = rows(&image, false);
        let shown = |row: &Value| {
            format!(
                "{} {} {} {}",
                text(&row["Repository"]),
                text(&row["Tag"]),
                text(&row["Digest"]),
                text(&row["ID"])
            )
        };
        assert_eq!(
            made.iter().map(shown).collect::<Vec<_>>(),
            ["a 1 sha256:1 aaaaaaaaaaaa", "localhost:5000/b 2 <none> aaaaaaaaaaaa"]
        );
        assert!(IMAGES.headings.iter().all(|(field, _)| made[0][field].is_string()), "{made:?}");
        let dangling = rows(&json!({ "Id": "sha256:b", "RepoTags": ["<none>:<none>"] }), false);
        assert_eq!(shown(&dangling[0]), "<none> <none> <none> b");
        assert_eq!(name_and_tag("localhost:5000/b"), None);
    }
}
