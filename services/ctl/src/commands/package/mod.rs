//! `canopy package`: making packages and repositories. Nothing of it needs a bus, but what is published
//! through the registry.

pub mod build;
pub mod init;
pub mod keys;
mod place;
pub mod publish;
mod registry;
mod repository;
pub mod trust;
mod verdict;
pub mod yank;

use crate::{
    cli::{ConnectionArgs, PackageCommand},
    failure::{Exit, Failure},
    files,
    output::Screen,
};
use canopy_api::ApiError;
use canopy_package::{Limits, Package, PackageError};
use std::path::Path;

/// Runs a subcommand. Those that ask the registry are answered on the bus, before this.
pub fn run(
    command: &PackageCommand,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        PackageCommand::Init { name, directory, hook } => {
            init::run(name, directory.as_deref(), *hook, screen)
        }
        PackageCommand::Build { directory, file, compile, include } => {
            if *compile {
                build::compile(directory, include)?;
            }
            build::run(directory, file.as_deref(), screen)
        }
        PackageCommand::Check { path, key, load } => build::check(path, key, *load, screen),
        PackageCommand::Keygen { directory, name } => keys::generate(directory, name, screen),
        PackageCommand::Sign { files, key } => keys::sign(files, key, screen),
        PackageCommand::Comment { file } => keys::comment(file, screen),
        PackageCommand::Publish(args) => publish::run(args, connection, screen),
        PackageCommand::Yank(args) => yank::run(args, connection, screen),
        PackageCommand::Show { .. }
        | PackageCommand::List { .. }
        | PackageCommand::Search { .. }
        | PackageCommand::Trust(_)
        | PackageCommand::Refresh { .. } => {
            Err(Failure::new(Exit::Failed, "this needs a connection"))
        }
    }
}

/// A package file: its bytes, and what it holds, objects checked.
pub(crate) fn open(path: &Path) -> Result<(Vec<u8>, Package), Failure> {
    let limits = Limits::default();
    let bytes = files::read_bounded(path, limits.archive_bytes)?;
    let package = Package::open(&bytes, &limits)
        .and_then(|package| {
            package.check_objects().map_err(PackageError::Manifest)?;
            Ok(package)
        })
        .map_err(|error| refused(&path.display().to_string(), &error))?;
    Ok((bytes, package))
}

/// Why a package, key, signature or index is refused, with the file it is in.
pub(crate) fn refused(place: &str, error: &PackageError) -> Failure {
    if let PackageError::Manifest(problems) = error {
        return Failure::in_file(place, problems.clone());
    }
    Failure::from(ApiError::from(error).at(place))
}
