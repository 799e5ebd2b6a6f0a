//! Publishing to a repository over the bus. The publisher signs package files and index and sends them in
//! pieces; here they are put together, verified as they are when they are read, compared with what is
//! there, and written: packages, signatures, then the index in the place of the one that it extends. So
//! no reader sees half of it, whenever this process ends.
//!
//! Pieces wait in the repository itself, below [`UPLOADS`], where no reader looks: so several registries
//! share them, and a registry that ends loses none.

use super::{Repository, SIGNATURE_LIMIT, Trust, verify};
use crate::{
    core::publication::{Named, changes},
    error::{PublishError, Trouble},
};
use bytes::Bytes;
use canopy_api::{
    Blob, Digest, PackageName, Principal,
    wire::{
        ARTIFACT_CHUNK, PUBLISH_PACKAGES, PublishIndexReply, PublishUploadReply,
        PublishUploadRequest, PublishedPackage,
    },
};
use canopy_package::{
    Index, IndexEntry, PackageError,
    index::{INDEX_LIMIT, split},
    repository::{INDEX, LOCK, artifact_path, signature_path},
};
use canopy_store::{Listed, Seen, Turn};
use semver::Version;
use std::{collections::BTreeSet, time::Duration};
use tokio::task::spawn_blocking;

/// Where pieces wait.
const UPLOADS: &str = ".uploads";

/// How long a file's pieces may take to come, from its first.
const PATIENCE: Duration = Duration::from_mins(10);

/// Files that may wait at once, of all publishers and of one.
const UPLOADING: usize = 32;
const UPLOADING_EACH: usize = 24;

/// Most pieces that can be there; a few more than fit the files.
const PIECES: usize = UPLOADING * (INDEX_FILE.div_ceil(ARTIFACT_CHUNK) + 1);

/// Longest index with its signature, bytes.
#[allow(clippy::cast_possible_truncation, reason = "a few kibibytes")]
const INDEX_FILE: usize = INDEX_LIMIT + SIGNATURE_LIMIT as usize;

/// Most bytes of package files of one publication, which are in memory together.
const TOGETHER: usize = 64 << 20;

/// What a publisher asks for.
#[derive(Clone, Debug)]
pub enum Change {
    /// These package files are added.
    Publish(Vec<PublishedPackage>),
    /// A version is withdrawn, or brought back.
    Yank {
        /// The package.
        name: PackageName,
        /// Its version.
        version: Version,
        /// Whether it is withdrawn.
        yanked: bool,
    },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Version of the index that is there now.
    pub index_version: u64,
    /// What it says anew.
    pub entries: Vec<IndexEntry>,
}

/// A package file that is to be written.
struct Checked {
    entry: IndexEntry,
    bytes: Bytes,
    signature: String,
}

impl Repository {
    /// Whether it may be written to over the bus.
    pub fn writable(&self) -> bool {
        self.config.writable && self.trust == Trust::Signed
    }

    fn may_write(&self) -> Result<(), PublishError> {
        if self.writable() { Ok(()) } else { Err(PublishError::NotWritable) }
    }

    /// A piece of the index as it is there now.
    pub async fn index_piece(&self, offset: u64) -> Result<PublishIndexReply, PublishError> {
        self.may_write()?;
        let Some(seen) = self.store.look(INDEX, INDEX_FILE as u64).await? else {
            return Ok(PublishIndexReply { digest: None, total: 0, data: Blob(Vec::new()) });
        };
        let total = seen.bytes.len() as u64;
        let rest = usize::try_from(offset).ok().and_then(|from| seen.bytes.get(from..));
        let rest = rest.ok_or(PublishError::Piece(format!(
            "offset {offset} is beyond the index's {total} bytes"
        )))?;
        let data = rest.get(..ARTIFACT_CHUNK).unwrap_or(rest).to_vec();
        Ok(PublishIndexReply { digest: Some(Digest::of(&seen.bytes)), total, data: Blob(data) })
    }

    /// Keeps a piece of a file until the rest is there.
    pub async fn upload(
        &self,
        by: &Principal,
        request: PublishUploadRequest,
    ) -> Result<PublishUploadReply, PublishError> {
        self.may_write()?;
        let PublishUploadRequest { digest, total, offset, data, .. } = request;
        let length = data.0.len() as u64;
        let wanted = total.saturating_sub(offset).min(ARTIFACT_CHUNK as u64);
        if total == 0 || total > INDEX_FILE as u64 {
            let what = format!("a file of {total} bytes; it has 1 to {INDEX_FILE}");
            return Err(PublishError::Piece(what));
        }
        if !offset.is_multiple_of(ARTIFACT_CHUNK as u64) || wanted == 0 || length != wanted {
            let what = format!("{length} bytes at offset {offset} of {total}");
            return Err(PublishError::Piece(what));
        }
        let place = place(by, &digest);
        if offset == 0 {
            self.room(&place, by).await?;
        } else if self.store.tag(&piece(&place, 0)).await?.is_none() {
            return Err(PublishError::NotThere(digest));
        }
        self.store.write(&piece(&place, offset), data.0).await?;
        Ok(PublishUploadReply { next: offset + length })
    }

    /// That one more file may come.
    async fn room(&self, place: &str, by: &Principal) -> Result<(), PublishError> {
        let waiting = self.forget_old_uploads().await?;
        let mine = format!("{UPLOADS}/{by}/");
        let of_mine = waiting.iter().filter(|other| other.starts_with(&mine)).count();
        let known = waiting.iter().any(|other| other == place);
        if !known && (waiting.len() >= UPLOADING || of_mine >= UPLOADING_EACH) {
            return Err(PublishError::Busy(waiting.len()));
        }
        Ok(())
    }

    /// Removes the pieces of files that did not come to an end; the folders of the others.
    pub async fn forget_old_uploads(&self) -> Result<BTreeSet<String>, PublishError> {
        let pieces = self.store.list_below(UPLOADS, PIECES).await?;
        // From its first piece: who sends one again and again keeps nothing for ever.
        let old: BTreeSet<&str> =
            pieces.iter().filter(|piece| piece.older_than(PATIENCE)).filter_map(folder).collect();
        let mut waiting = BTreeSet::new();
        for piece in &pieces {
            match folder(piece) {
                Some(folder) if !old.contains(folder) => {
                    waiting.insert(folder.to_owned());
                }
                _ => self.store.remove(&piece.path).await?,
            }
        }
        Ok(waiting)
    }

    /// A file whose pieces are all there.
    async fn assemble(
        &self,
        by: &Principal,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<u8>, PublishError> {
        let place = place(by, digest);
        let mut bytes = Vec::new();
        loop {
            let path = piece(&place, bytes.len() as u64);
            let Some(next) = self.store.look(&path, ARTIFACT_CHUNK as u64).await? else { break };
            bytes.extend_from_slice(&next.bytes);
            if bytes.len() > limit {
                let what = format!("a file of more than {limit} bytes");
                return Err(PublishError::Piece(what));
            }
            if next.bytes.len() < ARTIFACT_CHUNK {
                break;
            }
        }
        if Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(PublishError::NotThere(digest.clone()))
        }
    }

    async fn forget_upload(&self, by: &Principal, digest: &Digest) {
        let forget = async {
            for piece in self.store.list_below(&place(by, digest), PIECES).await? {
                self.store.remove(&piece.path).await?;
            }
            Ok::<_, canopy_store::StoreError>(())
        };
        if let Err(error) = forget.await {
            // They go by themselves in a while.
            tracing::debug!(%digest, %error, "the pieces of a published file stay");
        }
    }

    /// Makes a publisher's change, or none of it. `index` was sent before, and is put in the place of
    /// the one with digest `replaces`; `ours` are packages that come from here.
    pub async fn publish(
        &self,
        by: &Principal,
        change: &Change,
        index: &Digest,
        replaces: Option<&Digest>,
        ours: impl Fn(&PackageName) -> bool,
        now: u64,
    ) -> Result<Published, PublishError> {
        self.may_write()?;
        let file = self.assemble(by, index, INDEX_FILE).await?;
        // Those who write otherwise, such as the direct way, take the same turn.
        let turn = self.store.turn(LOCK).await?;
        let seen = self.store.look(INDEX, INDEX_FILE as u64).await?;
        if seen.as_ref().map(|seen| Digest::of(&seen.bytes)).as_ref() != replaces {
            return Err(PublishError::Overtaken);
        }
        let (old, new) = self.indexes(&file, seen.as_ref(), now).await?;
        let packages = match change {
            Change::Publish(packages) => packages.as_slice(),
            Change::Yank { .. } => &[],
        };
        let digests: Vec<_> = packages.iter().map(|package| package.digest.clone()).collect();
        let named = match change {
            Change::Publish(_) => Named::Packages(&digests),
            Change::Yank { name, version, yanked } => {
                Named::Yank { name, version, yanked: *yanked }
            }
        };
        let entries = changes(&old, &new, named)?;
        if let Some(entry) = entries.iter().find(|entry| !ours(&entry.name)) {
            return Err(PublishError::Elsewhere(entry.name.clone()));
        }
        let checked = self.check(by, packages, &entries, now).await?;
        // Only now anything is written.
        for one in checked {
            self.write_package(&turn, &old, one).await?;
        }
        let limit = INDEX_FILE as u64;
        if !self.store.replace_in_turn(&turn, INDEX, file, seen.as_ref(), limit).await? {
            return Err(PublishError::Overtaken);
        }
        drop(turn);
        for digest in digests.iter().chain([index]) {
            self.forget_upload(by, digest).await;
        }
        Ok(Published { index_version: new.version, entries })
    }

    /// The index that is there, and the new one: both rightly signed, the new one as a reader wants it.
    async fn indexes(
        &self,
        file: &[u8],
        seen: Option<&Seen>,
        now: u64,
    ) -> Result<(Index, Index), PublishError> {
        let highest = self.highest();
        if seen.is_none() && highest > 0 {
            return Err(PublishError::Trouble(Trouble::IndexGone(highest)));
        }
        let keys = self.config.keys.clone();
        let before = seen.map(|seen| seen.bytes.clone());
        let read = spawn_blocking(move || match &before {
            None => Ok(Index::default()),
            Some(before) => {
                let (json, signature) = split(before)?;
                Index::open_to_extend(json, signature, &keys, now)
            }
        });
        let old = read.await.map_err(|_| PublishError::Trouble(Trouble::Defect))??;
        let (json, signature) = split(file)?;
        let (json, signature) = (Bytes::copy_from_slice(json), signature.to_owned());
        let (new, _) =
            self.open_index(json, signature, now).await.map_err(PublishError::Trouble)?;
        Ok((old, new))
    }

    /// Verifies every package file as it will be when it is read.
    async fn check(
        &self,
        by: &Principal,
        packages: &[PublishedPackage],
        entries: &[IndexEntry],
        now: u64,
    ) -> Result<Vec<Checked>, PublishError> {
        if packages.len() > PUBLISH_PACKAGES {
            return Err(PublishError::TooMuch(format!("{PUBLISH_PACKAGES} package files")));
        }
        let mut checked: Vec<Checked> = Vec::new();
        for entry in entries {
            let Some(package) = packages.iter().find(|one| one.digest == entry.digest) else {
                continue;
            };
            entry.not_revoked(&self.config.revoked)?;
            if package.signature.len() as u64 > SIGNATURE_LIMIT {
                let (what, limit) = ("the signature".to_owned(), SIGNATURE_LIMIT);
                return Err(PackageError::TooLarge { what, limit }.into());
            }
            let bytes = self.assemble(by, &package.digest, self.limits.archive_bytes).await?;
            let held: usize = checked.iter().map(|one| one.bytes.len()).sum();
            if held + bytes.len() > TOGETHER {
                return Err(PublishError::TooMuch(format!("{TOGETHER} bytes")));
            }
            let (bytes, signature) = (Bytes::from(bytes), package.signature.clone());
            let keys = self.config.keys_of(&entry.name).to_vec();
            let (copy, signed, limits) = (bytes.clone(), signature.clone(), self.limits);
            let of = entry.clone();
            spawn_blocking(move || verify(copy, Some(signed), &of, &keys, limits, now))
                .await
                .map_err(|_| PublishError::Trouble(Trouble::Defect))??;
            checked.push(Checked { entry: entry.clone(), bytes, signature });
        }
        Ok(checked)
    }

    async fn write_package(
        &self,
        turn: &Turn,
        old: &Index,
        Checked { entry, bytes, signature }: Checked,
    ) -> Result<(), PublishError> {
        let IndexEntry { name, version, digest, .. } = entry;
        let path = artifact_path(&name, &version);
        let limit = self.limits.archive_bytes as u64;
        let there = self.store.look(&path, limit).await?;
        let same = there.as_ref().is_some_and(|there| Digest::of(&there.bytes) == digest);
        let own = old.entry(&name, &version).is_some();
        let written = if same {
            true
        } else if self.store.is_exclusive() {
            self.store.write(&path, bytes.to_vec()).await?;
            true
        } else if own || there.is_none() {
            let bytes = bytes.to_vec();
            self.store.replace_in_turn(turn, &path, bytes, there.as_ref(), limit).await?
        } else {
            // Somebody may be publishing other bytes under this version: who was first stays.
            false
        };
        if !written {
            return Err(PublishError::Taken { name, version });
        }
        self.store.write(&signature_path(&name, &version), signature.into_bytes()).await?;
        Ok(())
    }
}

/// Where a publisher's file waits.
fn place(by: &Principal, digest: &Digest) -> String {
    format!("{UPLOADS}/{by}/{}", digest.hex())
}

fn piece(place: &str, offset: u64) -> String {
    format!("{place}/{offset}")
}

/// The file that a piece is of.
fn folder(piece: &Listed) -> Option<&str> {
    let (folder, _) = piece.path.rsplit_once('/')?;
    (folder.split('/').count() == 3).then_some(folder)
}
