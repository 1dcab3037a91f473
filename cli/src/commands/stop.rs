//! `bulkhead stop`.

use std::time::Duration;

use engine::EngineError;
use engine::container::Containers;
use engine::paths::Paths;
use engine::stop::stop;

use crate::args::Stop;

pub fn execute(paths: &Paths, args: &Stop) -> Result<u8, EngineError> {
    let containers = Containers::new(paths.root().join("run"));
    for name in &args.containers {
        stop(&containers, name, Duration::from_secs(args.time.into()))?;
        println!("{name}");
    }
    Ok(0)
}
