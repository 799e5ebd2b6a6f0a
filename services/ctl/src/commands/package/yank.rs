//! `package yank`: withdraws a version, or brings it back.

use super::{
    refused,
    repository::{PATIENCE, Repository},
};
use crate::{
    cli::{ConnectionArgs, YankArgs},
    failure::{Exit, Failure},
    output::Screen,
};
use canopy_package::repository::INDEX;

/// Says in the index that the version is withdrawn, or is not any more.
pub fn run(
    args: &YankArgs,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let (name, version) = &args.version;
    let (repository, key) = Repository::of(&args.repository, connection)?;
    let place = repository.place.at(INDEX);
    let yanked = !args.undo;
    let state = if yanked { "withdrawn" } else { "offered" };
    let said = repository.change(&key, PATIENCE, |publisher, before| {
        if before.found.is_none() {
            return Err(Failure::new(Exit::NotFound, "there is no repository with an index")
                .at(place.clone())
                .fix("name the place that was published to: --repository"));
        }
        let index = repository.index(before)?.unwrap_or_default();
        if index.entry(name, version).is_some_and(|entry| entry.yanked == yanked) {
            return Ok((None, format!("{name} {version} is {state} already\n")));
        }
        let changed = publisher
            .yank(&index, name, version, yanked)
            .map_err(|error| refused(&place, &error))?;
        let said = format!(
            "{name} {version} is {state} now\n{}: index version {}\n",
            repository.place.name(),
            changed.index.version
        );
        Ok((Some(changed), said))
    })?;
    screen.print(&said)?;
    Ok(Exit::Done)
}
