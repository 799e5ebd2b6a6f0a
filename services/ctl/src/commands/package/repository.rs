//! A repository on the publisher's side: read, checked and written so that a reader always sees a whole
//! one, and no publisher loses another's work.

use super::{
    build, keys,
    place::{Found, Place},
    refused,
};
use crate::{
    cli::{ConnectionArgs, RepositoryArgs},
    failure::{Exit, Failure},
    progress::Progress,
};
use canopy_api::{Digest, PackageName};
use canopy_package::{
    Index, IndexEntry, Limits, SecretKey, TrustedKey,
    index::{MOST_LIFETIME_DAYS, highest_version, split},
    repository::{INDEX, Publication, Publisher, artifact_path},
};
use canopy_runtime::clock;
use semver::Version;
use std::{
    thread,
    time::{Duration, UNIX_EPOCH},
};

/// How often a publisher begins again because others were quicker.
const TRIES: u32 = 30;

/// How long the very first publication of somebody else may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The repository, as its publisher knows it.
pub(super) struct Repository {
    pub(super) place: Place,
    /// Keys whose signatures its readers trust, the publisher's own first.
    pub(super) trusted: Vec<TrustedKey>,
    lifetime: Duration,
}

impl Repository {
    /// The repository that was named, and the publisher's key.
    pub(super) fn of(
        args: &RepositoryArgs,
        connection: &ConnectionArgs,
    ) -> Result<(Self, SecretKey), Failure> {
        if args.expires_in > Duration::from_secs(MOST_LIFETIME_DAYS * 86_400) {
            let days = args.expires_in.as_secs() / 86_400;
            let message = format!("{days} days; an index counts for {MOST_LIFETIME_DAYS} at most");
            return Err(Failure::new(Exit::Invalid, message)
                .at("--expires-in")
                .fix("leave it out for 90 days, and have the index signed again by a timer"));
        }
        let key = keys::secret_key(&args.key)?;
        let own = key.public().map_err(|error| refused(&args.key.display().to_string(), &error))?;
        let mut trusted = vec![TrustedKey::from(own)];
        for path in &args.trusted_key {
            trusted.push(build::public_key(path)?);
        }
        let place = Place::of(&args.repository, args.store.as_deref(), connection)?;
        Ok((Self { place, trusted, lifetime: args.expires_in }, key))
    }

    /// Lets `work` make a publication out of what is there, and writes it: packages first, then the
    /// index in the place of the one that `work` was given. When somebody else has written one
    /// meanwhile, `work` is asked again. Without a publication nothing is written. `patience` is how long
    /// somebody else may take for the very first publication.
    pub(super) fn change<T>(
        &self,
        key: &SecretKey,
        patience: Duration,
        work: impl Fn(&Publisher<'_>, &Before) -> Result<(Option<Publication>, T), Failure>,
    ) -> Result<T, Failure> {
        let _lock = self.place.lock()?;
        for attempt in 0..TRIES {
            // Each attempt has its own time: what is signed now counts from now.
            let publisher = Publisher { key, now: build::now(), lifetime: self.lifetime.as_secs() };
            let before = self.before(patience)?;
            let (publication, outcome) = work(&publisher, &before)?;
            let Some(publication) = publication else { return Ok(outcome) };
            let known = before.found.as_ref().and_then(|found| self.open(found).ok());
            let mut written = true;
            for (path, bytes) in publication.files {
                if path == INDEX {
                    written = self.place.swap_index(bytes, before.found.as_ref())?;
                } else if path.ends_with(".minisig") {
                    self.place.write(&path, bytes)?;
                } else {
                    let own = known.as_ref().is_some_and(|index| names(index, &path, &bytes));
                    self.place.write_package(&path, bytes, own)?;
                }
            }
            if written {
                return Ok(outcome);
            }
            pause(attempt);
        }
        Err(Failure::new(
            Exit::Conflict,
            format!(
                "other publishers were quicker {TRIES} times; the index does not name yours yet"
            ),
        )
        .at(self.place.at(INDEX))
        .fix("run the command again"))
    }

    /// What is there now. Packages without an index may be somebody's first publication under way.
    fn before(&self, patience: Duration) -> Result<Before, Failure> {
        let begin = clock::monotonic();
        for attempt in 0.. {
            let found = self.place.index()?;
            let orphans = found.is_none() && !self.place.artifacts()?.is_empty();
            let waits = orphans && self.place.is_shared() && begin.elapsed() < patience;
            if !waits {
                return Ok(Before { found, orphans });
            }
            pause(attempt);
        }
        Ok(Before { found: None, orphans: true })
    }

    /// The index, if there is one. Its age does not matter to its publisher; who signed it does: an
    /// index somebody else put there must not get our signature.
    pub(super) fn index(&self, before: &Before) -> Result<Option<Index>, Failure> {
        let place = self.place.at(INDEX);
        let Some(found) = &before.found else {
            if !before.orphans {
                return Ok(None);
            }
            return Err(Failure::new(
                Exit::Conflict,
                "the repository holds packages, and no index",
            )
            .at(place)
            .fix("restore it, or make it anew: canopy package publish --rebuild-index"));
        };
        self.open(found).map(Some).map_err(|error| {
            refused(&place, &error).fix(
                "if the key was changed, name the old one: --trusted-key OLD.pub; \
                 if the index is damaged, make it anew: --rebuild-index",
            )
        })
    }

    fn open(&self, found: &Found) -> Result<Index, canopy_package::PackageError> {
        let (bytes, signature) = split(&found.file)?;
        Index::open_to_extend(bytes, signature, &self.trusted, build::now())
    }

    /// Whether the same bytes are published, and still there.
    pub(super) fn has(
        &self,
        index: Option<&Index>,
        name: &PackageName,
        version: &Version,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        let same = |entry: &&IndexEntry| !entry.yanked && entry.digest == *digest;
        let entry = index.and_then(|index| index.entry(name, version)).filter(same);
        let Some(entry) = entry else { return Ok(false) };
        // The registry does not give package files to people: what its index names it has verified.
        if self.place.is_remote() {
            return Ok(true);
        }
        let path = artifact_path(name, version);
        let there = self.place.read(&path, Limits::default().archive_bytes)?;
        Ok(there.is_some_and(|bytes| entry.check(&bytes).is_ok())
            && !self.place.signature(&path)?.is_empty())
    }

    pub(super) fn rebuild(
        &self,
        publisher: &Publisher<'_>,
        before: &Before,
    ) -> Result<Publication, Failure> {
        let _progress = Progress::start("checking every package of the repository");
        let mut found = Vec::new();
        for path in self.place.artifacts()? {
            let bytes = self.place.read(&path, Limits::default().archive_bytes)?;
            // Gone since it was listed.
            let Some(bytes) = bytes else { continue };
            found.push((bytes, self.place.signature(&path)?));
        }
        let current = before.found.as_ref().and_then(|found| self.open(found).ok());
        // An index that cannot be trusted cannot say how high its version was. The clock can: one
        // publication a second would be needed to overtake it.
        // The same for a version that nobody can have come to.
        let sound = current.as_ref().filter(|index| index.version < highest_version(publisher.now));
        let last = sound.map_or(publisher.now, |index| index.version);
        let artifacts = found.iter().map(|(bytes, text)| (bytes.as_slice(), text.as_str()));
        publisher
            .rebuild(artifacts, &self.trusted, current.as_ref(), last)
            .map_err(|error| refused(&self.place.name(), &error))
    }
}

/// What was there when a change began.
pub(super) struct Before {
    pub(super) found: Option<Found>,
    /// There are packages, and no index.
    orphans: bool,
}

/// Whether an index names these very bytes at this path.
fn names(index: &Index, path: &str, bytes: &[u8]) -> bool {
    let digest = Digest::of(bytes);
    index
        .packages
        .iter()
        .any(|entry| entry.digest == digest && artifact_path(&entry.name, &entry.version) == path)
}

/// Longer each time, and not the same for two who began together.
fn pause(attempt: u32) {
    let spread =
        clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_micros() % 40);
    thread::sleep(Duration::from_millis(u64::from(attempt.min(10) * 10 + spread)));
}
