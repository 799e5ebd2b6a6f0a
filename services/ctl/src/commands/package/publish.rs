//! `package publish`: adds packages to a repository, or signs or makes its index again.

use super::{
    open, refused,
    repository::{Before, PATIENCE, Repository},
};
use crate::{
    cli::{ConnectionArgs, PublishArgs},
    failure::{Exit, Failure},
    files,
    output::Screen,
};
use canopy_api::{Digest, PackageName};
use canopy_package::{
    SecretKey,
    archive::Package,
    repository::{INDEX, Publication, Publisher},
};
use semver::Version;
use std::{path::Path, time::Duration};

/// Publishes the files, or signs or makes the index again.
pub fn run(
    args: &PublishArgs,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let (repository, key) = Repository::of(&args.repository, connection)?;
    // Everything is read and checked before anything is locked or written.
    let offers = args
        .files
        .iter()
        .map(|path| Offer::read(path, &key))
        .collect::<Result<Vec<Offer>, Failure>>()?;
    if args.rebuild_index {
        repository.place.rebuildable()?;
    }
    repository.place.make()?;
    // Who makes the index anew knows that there is none.
    let patience = if args.rebuild_index { Duration::ZERO } else { PATIENCE };
    let said = repository.change(&key, patience, |publisher, before| {
        plan(args, &repository, publisher, before, &offers)
    })?;
    for line in said {
        screen.print(&(line + "\n"))?;
    }
    Ok(Exit::Done)
}

/// A package file to be published.
struct Offer {
    place: String,
    name: PackageName,
    version: Version,
    digest: Digest,
    bytes: Vec<u8>,
    signature: String,
}

impl Offer {
    fn read(path: &Path, key: &SecretKey) -> Result<Self, Failure> {
        let place = path.display().to_string();
        let (bytes, Package { manifest, .. }) = open(path)?;
        let beside = files::beside(path, ".minisig");
        let signature = if beside.exists() {
            files::read_text(&beside, 1 << 16)?
        } else {
            key.sign_package(&bytes, &manifest.name, &manifest.version)
                .map_err(|error| refused(&place, &error))?
        };
        let digest = Digest::of(&bytes);
        Ok(Self { place, name: manifest.name, version: manifest.version, digest, bytes, signature })
    }
}

/// What is to be written, and what there is to say of it.
fn plan(
    args: &PublishArgs,
    repository: &Repository,
    publisher: &Publisher<'_>,
    before: &Before,
    offers: &[Offer],
) -> Result<(Option<Publication>, Vec<String>), Failure> {
    let place = repository.place.name();
    let mut said = Vec::new();
    let mut packages: Vec<(String, Vec<u8>)> = Vec::new();
    let mut last: Option<Publication> = None;
    if args.rebuild_index {
        let rebuilt = repository.rebuild(publisher, before)?;
        said.push(format!("index made anew: {} versions", rebuilt.index.packages.len()));
        last = Some(rebuilt);
    }
    let mut index = match &last {
        Some(rebuilt) => Some(rebuilt.index.clone()),
        None => repository.index(before)?,
    };
    for offer in offers {
        let Offer { name, version, .. } = offer;
        if repository.has(index.as_ref(), &offer.name, &offer.version, &offer.digest)? {
            said.push(format!("{name} {version} is published already"));
            continue;
        }
        let mut publication = publisher
            .publish(index.as_ref(), &offer.bytes, &offer.signature, &repository.trusted)
            .map_err(|error| refused(&offer.place, &error))?;
        packages.extend(publication.files.drain(..publication.files.len().min(2)));
        said.push(format!("{name} {version} published, {}", offer.digest));
        index = Some(publication.index.clone());
        last = Some(publication);
    }
    if args.refresh_index && last.is_none() {
        let current = index.as_ref().ok_or_else(|| {
            Failure::new(Exit::NotFound, "there is no index to sign again")
                .at(repository.place.at(INDEX))
                .fix("publish a package first, or --rebuild-index")
        })?;
        last = Some(publisher.refresh(current).map_err(|error| refused(&place, &error))?);
        said.push("index signed again".to_owned());
    }
    if let Some(last) = &mut last {
        // The packages, then the index that names them.
        last.files.splice(0..0, packages);
        said.push(format!("{place}: index version {}", last.index.version));
    }
    Ok((last, said))
}
