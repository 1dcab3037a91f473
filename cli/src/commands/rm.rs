//! `bulkhead rm`.

use engine::EngineError;
use engine::container::Containers;
use engine::paths::Paths;

use crate::args::Rm;

pub fn execute(paths: &Paths, args: &Rm) -> Result<u8, EngineError> {
    let containers = Containers::new(paths.root().join("run"));
    for name in &args.containers {
        containers.remove(name)?;
        println!("{name}");
    }
    Ok(0)
}
