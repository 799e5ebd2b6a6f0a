//! The package file: tar + zstd, read in memory within limits.
//!
//! A package is flat: `package.yaml`, `README.md`, `LICENSE` and the objects the manifest names,
//! nothing else. Nothing is ever written to disk by reading one.

use crate::{
    error::{EntryFault, PackageError},
    manifest::Manifest,
};
use canopy_api::{
    Problem, Problems,
    document::{self, Format},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

/// The manifest's name in a package.
pub const MANIFEST: &str = "package.yaml";
/// The README's name in a package.
pub const README: &str = "README.md";
/// The licence text's name in a package.
pub const LICENSE: &str = "LICENSE";

/// Level of compression: packages are written once and read often.
const LEVEL: i32 = 19;
/// Largest window a decoder may be made to allocate, as a power of two: 16 MiB.
const WINDOW_LOG: u32 = 24;

/// Bounds of what is read; a file over any of them is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Package file, bytes. Default 16 MiB.
    pub archive_bytes: usize,
    /// Unpacked, bytes. Default 64 MiB.
    pub unpacked_bytes: usize,
    /// Number of files. Default 256.
    pub files: usize,
    /// Manifest, bytes. Default 1 MiB.
    pub manifest_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 16 << 20,
            unpacked_bytes: 64 << 20,
            files: 256,
            manifest_bytes: 1 << 20,
        }
    }
}

/// A package, unpacked and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Package {
    /// Its manifest.
    pub manifest: Manifest,
    /// Object files by name in the package.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// `README.md`.
    pub readme: Option<String>,
    /// `LICENSE`.
    pub license_text: Option<String>,
}

impl Package {
    /// Reads a package file: everything but the objects' insides, which
    /// [`Package::check_objects`] looks at.
    pub fn open(bytes: &[u8], limits: &Limits) -> Result<Self, PackageError> {
        if bytes.len() > limits.archive_bytes {
            return Err(too_large("the package file", limits.archive_bytes));
        }
        let mut files = files(&decompress(bytes, limits.unpacked_bytes)?, limits)?;
        let manifest = files.remove(MANIFEST).ok_or(PackageError::NoManifest)?;
        if manifest.len() > limits.manifest_bytes {
            return Err(too_large(MANIFEST, limits.manifest_bytes));
        }
        let manifest = Manifest::read(&text(MANIFEST, manifest)?, Format::Yaml)
            .map_err(PackageError::Manifest)?;
        let readme = files.remove(README).map(|bytes| text(README, bytes)).transpose()?;
        let license_text = files.remove(LICENSE).map(|bytes| text(LICENSE, bytes)).transpose()?;
        let package = Self { manifest, objects: files, readme, license_text };
        package.check_files()?;
        Ok(package)
    }

    /// Writes a package file; the same content gives the same bytes.
    pub fn build(&self) -> Result<Vec<u8>, PackageError> {
        self.manifest.check().map_err(PackageError::Manifest)?;
        self.check_files()?;
        let limits = Limits::default();
        let manifest = self.manifest.to_yaml().map_err(PackageError::Manifest)?;
        let mut tar = tar::Builder::new(Vec::new());
        let named = [
            (MANIFEST, Some(manifest.as_bytes())),
            (README, self.readme.as_deref().map(str::as_bytes)),
            (LICENSE, self.license_text.as_deref().map(str::as_bytes)),
        ];
        let named = named.into_iter().filter_map(|(name, bytes)| Some((name, bytes?)));
        let objects = self.objects.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
        for (name, bytes) in named.chain(objects) {
            check_name(name)
                .map_err(|fault| PackageError::Entry { name: name.to_owned(), fault })?;
            // Nothing of the machine or the time it was built on.
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).map_err(|error| damaged(&error))?;
        }
        let tar = tar.into_inner().map_err(|error| damaged(&error))?;
        if tar.len() > limits.unpacked_bytes {
            return Err(too_large("the unpacked package", limits.unpacked_bytes));
        }
        let bytes = compress(&tar).map_err(|error| damaged(&error))?;
        if bytes.len() > limits.archive_bytes {
            return Err(too_large("the package file", limits.archive_bytes));
        }
        Ok(bytes)
    }

    /// The objects the manifest names are there, and nothing else is.
    fn check_files(&self) -> Result<(), PackageError> {
        let mut problems = Problems::default();
        let mut named = BTreeSet::new();
        for (i, program) in self.manifest.programs.iter().enumerate() {
            for (place, file) in program.objects() {
                if named.insert(file) && !self.objects.contains_key(file) {
                    problems.push(
                        Problem::new(
                            format!("programs[{i}].{place}"),
                            format!("the package has no file \"{file}\""),
                        )
                        .remedy("build the object beside package.yaml, or correct the name"),
                    );
                }
            }
        }
        problems.into_result().map_err(PackageError::Manifest)?;
        match self.objects.keys().find(|name| !named.contains(name.as_str())) {
            Some(name) => {
                Err(PackageError::Entry { name: name.clone(), fault: EntryFault::Unmentioned })
            }
            None => Ok(()),
        }
    }
}

fn compress(tar: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(tar.len() as u64))?;
    std::io::Write::write_all(&mut encoder, tar)?;
    encoder.finish()
}

/// Decompresses one zstd frame of at most `limit` bytes; a bomb is stopped there.
fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, PackageError> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)
        .map_err(|error| damaged(&error))?
        .single_frame();
    decoder.window_log_max(WINDOW_LOG).map_err(|error| damaged(&error))?;
    let mut out = Vec::new();
    // One byte more than allowed tells too much from just enough.
    decoder
        .by_ref()
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| damaged(&error))?;
    if out.len() > limit {
        return Err(too_large("the unpacked package", limit));
    }
    if !decoder.finish().is_empty() {
        return Err(PackageError::Damaged { reason: "bytes follow the end".to_owned() });
    }
    Ok(out)
}

/// The plain files of a tar, in memory.
fn files(tar: &[u8], limits: &Limits) -> Result<BTreeMap<String, Vec<u8>>, PackageError> {
    let mut files = BTreeMap::new();
    let mut folded = BTreeSet::new();
    let mut archive = tar::Archive::new(tar);
    // Raw: a long-name or pax header is an entry like any other, and is refused as one.
    for entry in archive.entries().map_err(|error| damaged(&error))?.raw(true) {
        let mut entry = entry.map_err(|error| damaged(&error))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |fault| Err(PackageError::Entry { name: name.clone(), fault });
        if entry.header().entry_type() != tar::EntryType::Regular {
            return refuse(EntryFault::NotAFile);
        }
        if let Err(fault) = check_name(&name) {
            return refuse(fault);
        }
        if files.contains_key(&name) {
            return refuse(EntryFault::Duplicate);
        }
        if !folded.insert(name.to_ascii_lowercase()) {
            return refuse(EntryFault::CaseCollision);
        }
        if files.len() >= limits.files {
            return Err(PackageError::TooManyFiles { limit: limits.files });
        }
        let size = entry.size();
        let mut bytes = Vec::new();
        // The entry cannot be longer than the tar, whatever its header claims.
        entry.read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
        if bytes.len() as u64 != size {
            return Err(PackageError::Damaged { reason: format!("\"{name}\" is cut short") });
        }
        files.insert(name, bytes);
    }
    Ok(files)
}

fn check_name(name: &str) -> Result<(), EntryFault> {
    if name.starts_with('/') {
        return Err(EntryFault::Absolute);
    }
    if name.split('/').any(|part| part == "..") {
        return Err(EntryFault::Traversal);
    }
    if name.contains('/') {
        return Err(EntryFault::Nested);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good = (1..=100).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(EntryFault::Name) }
}

fn text(name: &str, bytes: Vec<u8>) -> Result<String, PackageError> {
    String::from_utf8(bytes)
        .map_err(|_| PackageError::Damaged { reason: format!("\"{name}\" is not UTF-8 text") })
}

fn too_large(what: &str, limit: usize) -> PackageError {
    PackageError::TooLarge { what: what.to_owned(), limit: limit as u64 }
}

fn damaged(error: &std::io::Error) -> PackageError {
    PackageError::Damaged { reason: error.to_string() }
}

impl Manifest {
    /// Reads and checks a manifest: every mistake at once.
    pub fn read(text: &str, format: Format) -> Result<Self, Problems> {
        let manifest: Self = document::load(text, format)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// As `package.yaml`.
    pub fn to_yaml(&self) -> Result<String, Problems> {
        let text = serde_saphyr::to_string(self)
            .map_err(|error| Problem::new("", format!("cannot be written as YAML: {error}")))?;
        // What a reader will see is what was meant, to the last quote.
        if Self::read(&text, Format::Yaml)? == *self {
            Ok(text)
        } else {
            Err(Problem::new("", "the manifest does not survive being written as YAML").into())
        }
    }
}
