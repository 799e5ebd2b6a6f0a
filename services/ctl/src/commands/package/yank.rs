//! `package yank`: withdraws a version, or brings it back.

use super::{refused, repository::Repository};
use crate::{
    cli::YankArgs,
    failure::{Exit, Failure},
    output::Screen,
};
use canopy_package::repository::INDEX;

/// Says in the index that the version is withdrawn, or is not any more.
pub fn run(args: &YankArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let (name, version) = &args.version;
    let (repository, key) = Repository::of(&args.repository)?;
    let place = repository.directory.join(INDEX).display().to_string();
    if !repository.directory.join(INDEX).exists() {
        return Err(Failure::new(Exit::NotFound, "there is no repository with an index")
            .at(place)
            .fix("name the directory that was published to: --repository DIR"));
    }
    let _lock = repository.lock()?;
    let index = repository.index()?.unwrap_or_default();
    let yanked = !args.undo;
    let state = if yanked { "withdrawn" } else { "offered" };
    if index.entry(name, version).is_some_and(|entry| entry.yanked == yanked) {
        screen.print(&format!("{name} {version} is {state} already\n"))?;
        return Ok(Exit::Done);
    }
    let changed = repository
        .publisher(&key)
        .yank(&index, name, version, yanked)
        .map_err(|error| refused(&place, &error))?;
    for (path, bytes) in &changed.files {
        repository.write(path, bytes)?;
    }
    screen.print(&format!("{name} {version} is {state} now\n"))?;
    screen.print(&format!(
        "{}: index version {}\n",
        repository.directory.display(),
        changed.index.version
    ))?;
    Ok(Exit::Done)
}
