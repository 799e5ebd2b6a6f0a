//! A repository behind the registry: what is published goes there over the bus, package files first, then
//! the index that names them. The keys stay here.

use crate::{
    cli::ConnectionArgs,
    context::Settings,
    failure::{Exit, Failure},
    progress::Progress,
    remote::Remote,
};
use canopy_api::{
    Blob, Digest,
    endpoint::{
        Endpoint,
        registry::{Publish, PublishIndex, PublishUpload, Yank},
    },
    wire::{
        ARTIFACT_CHUNK, PublishIndexRequest, PublishRequest, PublishUploadRequest,
        PublishedPackage, YankRequest,
    },
};
use canopy_package::{
    Index, IndexEntry,
    index::{INDEX_LIMIT, split},
};
use std::{cell::RefCell, collections::BTreeMap};
use tokio::runtime::Runtime;

/// How often an index that changes while it is read is read again.
const TRIES: u32 = 5;

/// A repository of the registry's, by name.
pub(super) struct Registry {
    repository: String,
    remote: Remote,
    runtime: Runtime,
    /// Package files and signatures that go with the next index.
    kept: RefCell<BTreeMap<String, Vec<u8>>>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.runtime.block_on(self.remote.close());
    }
}

impl Registry {
    pub(super) fn connect(name: &str, connection: &ConnectionArgs) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
        let settings = Settings::gather(connection)?;
        let remote = runtime.block_on(Remote::connect(&settings, connection.timeout))?;
        Ok(Self { repository: name.to_owned(), remote, runtime, kept: RefCell::default() })
    }

    pub(super) fn name(&self) -> String {
        format!("registry:{}", self.repository)
    }

    fn ask<E: Endpoint>(&self, request: &E::Request) -> Result<E::Reply, Failure> {
        // A publication is many requests: the time is each one's.
        self.remote.begin();
        self.runtime.block_on(self.remote.ask_centre::<E>(request))
    }

    /// The index's file, if there is one.
    pub(super) fn index(&self) -> Result<Option<Vec<u8>>, Failure> {
        for _ in 0..TRIES {
            let mut file = Vec::new();
            loop {
                let request = PublishIndexRequest {
                    repository: self.repository.clone(),
                    offset: file.len() as u64,
                };
                let piece = self.ask::<PublishIndex>(&request);
                // A shorter one may be there by now.
                let piece = match piece {
                    Err(failure) if !file.is_empty() && failure.exit == Exit::Invalid => break,
                    piece => piece?,
                };
                let Some(digest) = piece.digest else { return Ok(None) };
                file.extend_from_slice(&piece.data.0);
                if file.len() as u64 >= piece.total || piece.data.0.is_empty() {
                    if Digest::of(&file) == digest {
                        return Ok(Some(file));
                    }
                    break;
                }
                if file.len() > 2 * INDEX_LIMIT {
                    break;
                }
            }
        }
        Err(Failure::new(Exit::Unavailable, "the index changes all the time")
            .at(self.name())
            .fix("try again"))
    }

    /// Keeps a package file or a signature for the index that names it.
    pub(super) fn keep(&self, path: &str, bytes: Vec<u8>) {
        self.kept.borrow_mut().insert(path.to_owned(), bytes);
    }

    /// Publishes `file` in the place of `before`, with what was kept. False when somebody else was
    /// quicker.
    pub(super) fn publish(&self, file: &[u8], before: Option<&[u8]>) -> Result<bool, Failure> {
        let kept = self.kept.take();
        let packages = kept.iter().filter(|(path, _)| !path.ends_with(".minisig"));
        let mut named = Vec::new();
        for (path, bytes) in packages {
            let signature = kept.get(&format!("{path}.minisig")).cloned().unwrap_or_default();
            let signature = String::from_utf8(signature)
                .map_err(|_| Failure::new(Exit::Invalid, "not UTF-8 text").at(path.clone()))?;
            named.push(PublishedPackage { digest: self.upload(path, bytes)?, signature });
        }
        let index = self.upload("the index", file)?;
        let replaces = before.map(Digest::of);
        let repository = self.repository.clone();
        let yank = before.filter(|_| named.is_empty()).and_then(|before| yanked(before, file));
        let outcome = match (yank, replaces) {
            (Some(IndexEntry { name, version, yanked, .. }), Some(replaces)) => {
                let (package, version) = (name, version.to_string());
                let request = YankRequest { repository, package, version, yanked, index, replaces };
                self.ask::<Yank>(&request)
            }
            (_, replaces) => self.ask::<Publish>(&PublishRequest {
                repository,
                packages: named,
                index,
                replaces,
            }),
        };
        match outcome {
            Ok(_) => Ok(true),
            Err(failure) if overtaken(&failure) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Sends a file in pieces.
    fn upload(&self, what: &str, bytes: &[u8]) -> Result<Digest, Failure> {
        let _progress = Progress::start(format!("sending {what}"));
        let digest = Digest::of(bytes);
        let mut offset = 0;
        for data in bytes.chunks(ARTIFACT_CHUNK) {
            let request = PublishUploadRequest {
                repository: self.repository.clone(),
                digest: digest.clone(),
                total: bytes.len() as u64,
                offset,
                data: Blob(data.to_vec()),
            };
            self.ask::<PublishUpload>(&request)?;
            offset += data.len() as u64;
        }
        Ok(digest)
    }
}

/// Whether the registry says that the index is another one by now.
fn overtaken(failure: &Failure) -> bool {
    failure.exit == Exit::Conflict
        && failure.problems.first().is_some_and(|problem| problem.path == "replaces")
}

/// The one version that a new index withdraws or brings back.
fn yanked(before: &[u8], after: &[u8]) -> Option<IndexEntry> {
    let open = |file: &[u8]| Index::open_unsigned(split(file).ok()?.0).ok();
    let (before, after) = (open(before)?, open(after)?);
    let mut changed = after.packages.into_iter().filter(|entry| {
        before.entry(&entry.name, &entry.version).is_some_and(|old| old.yanked != entry.yanked)
    });
    changed.next().filter(|_| changed.next().is_none())
}
