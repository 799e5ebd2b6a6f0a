//! Packages on this host, by digest, so that a restart needs neither bus nor registry.
//!
//! What chains need stays, whatever it takes; besides, the packages used last are kept as far as there is
//! room, so that going back to one needs no registry either. A download that breaks off is kept too, and
//! goes on where it stopped.

use crate::metrics::PackageMetrics;
use canopy_api::{Digest, PackageName};
use canopy_package::{Limits, Package, sign};
use canopy_runtime::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

/// Where packages come from once they were verified.
pub trait PackageSource: Send + Sync {
    /// The package of these bytes, or why it is not at hand, in one line.
    fn package(&self, digest: &Digest) -> Result<Arc<Package>, String>;

    /// These are needed from now on; the rest may go when there is no room.
    fn retain(&self, digests: &BTreeSet<Digest>);
}

/// Bytes of packages kept on disk unless the configuration says otherwise.
pub const DEFAULT_BYTES: u64 = 512 << 20;

/// Longest package file and longest signature that are read from it, bytes.
const ARCHIVE: u64 = 64 << 20;
const SIGNATURE: u64 = 64 * 1024;

/// A directory of package files named by digest, each with its signature beside it. Files are
/// checked against their name at each reading; whoever puts one there has checked its signature.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limits: Limits,
    open: Mutex<Opened>,
    /// Room on disk, bytes.
    room: u64,
    /// Whether there is room for all that lies here, as far as is known.
    fits: AtomicBool,
    kept: Mutex<Kept>,
    metrics: Option<PackageMetrics>,
}

/// Bytes of objects of opened packages that no chain needs: a chain that goes and comes back, or a
/// change that is asked for first and made then, does not open its packages twice.
const SPARE_BYTES: usize = 2 << 20;

/// Packages in memory.
#[derive(Debug, Default)]
struct Opened {
    /// Each with when it was used last.
    packages: BTreeMap<Digest, (Arc<Package>, u64)>,
    uses: u64,
}

impl Opened {
    fn get(&mut self, digest: &Digest) -> Option<Arc<Package>> {
        self.uses += 1;
        let (package, used) = self.packages.get_mut(digest)?;
        *used = self.uses;
        Some(Arc::clone(package))
    }

    fn put(&mut self, digest: Digest, package: Arc<Package>) {
        self.uses += 1;
        self.packages.insert(digest, (package, self.uses));
    }

    /// Keeps what is needed, and of the others what was used last.
    fn retain(&mut self, needed: &BTreeSet<Digest>) {
        let spare = self.packages.iter().filter(|(digest, _)| !needed.contains(*digest));
        let mut spare: Vec<_> = spare
            .map(|(digest, (package, used))| {
                let bytes = package.objects.values().map(Vec::len).sum::<usize>();
                (*used, bytes, digest.clone())
            })
            .collect();
        spare.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (_, size, digest) in spare {
            bytes += size;
            if bytes > SPARE_BYTES {
                self.packages.remove(&digest);
            }
        }
    }
}

/// What must not go.
#[derive(Debug, Default)]
struct Kept {
    /// Chains need it.
    needed: BTreeSet<Digest>,
    /// The change under way has it in hand.
    in_hand: BTreeSet<Digest>,
}

impl Cache {
    /// A cache in this directory, which is made if need be.
    pub fn new(dir: &Path, limits: Limits) -> std::io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            open: Mutex::default(),
            room: DEFAULT_BYTES,
            fits: AtomicBool::new(false),
            kept: Mutex::default(),
            metrics: None,
        })
    }

    /// With so much room on disk, bytes. What chains need stays even beyond it.
    #[must_use]
    pub fn with_room(mut self, bytes: u64) -> Self {
        self.room = bytes;
        self.fits = AtomicBool::new(false);
        self
    }

    /// With metrics.
    #[must_use]
    pub fn counted(mut self, metrics: PackageMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// A change begins: what an earlier one had in hand may go.
    pub fn begin(&self) {
        self.kept().in_hand.clear();
    }

    /// The package of these bytes if it was opened before.
    pub fn opened(&self, digest: &Digest) -> Option<Arc<Package>> {
        self.open().get(digest)
    }

    /// Keeps a package of these bytes in memory for who needs it next, as far as there is room.
    pub fn hold(&self, digest: &Digest, package: &Arc<Package>) {
        let needed = self.kept().needed.clone();
        let mut open = self.open();
        open.put(digest.clone(), Arc::clone(package));
        open.retain(&needed);
    }

    fn open(&self) -> MutexGuard<'_, Opened> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there already of a download that broke off.
    pub fn part(&self, digest: &Digest) -> Vec<u8> {
        canopy_files::read(&self.part_file(digest), ARCHIVE).unwrap_or_default()
    }

    /// Adds to a download.
    pub fn add_part(&self, digest: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        self.fits.store(false, Ordering::Relaxed);
        let path = self.part_file(digest);
        if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            // Whatever it is, what is written to it does not stay.
            remove(&path);
        }
        let file = fs::File::options().create(true).append(true).open(path);
        file?.write_all(bytes)
    }

    /// Forgets a download.
    pub fn drop_part(&self, digest: &Digest) {
        // Nothing to forget is as good.
        let _ = fs::remove_file(self.part_file(digest));
    }

    fn part_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.part", digest.hex()))
    }

    /// Makes room: the packages and downloads used longest ago go first. Never what must not go.
    fn evict(&self) {
        if self.fits.load(Ordering::Relaxed) {
            return;
        }
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let known = [".cpkg", ".cpkg.minisig", ".part"];
            let stem = known
                .iter()
                .find_map(|ending| name.strip_suffix(ending).filter(|stem| !stem.contains('.')));
            let (Some(stem), Ok(meta)) = (stem, file.metadata()) else {
                // Left over from a write that was broken off.
                remove(&file.path());
                continue;
            };
            let entry = entries.entry(stem.to_owned()).or_default();
            entry.bytes += meta.len();
            entry.used = entry.used.max(meta.modified().ok());
            entry.files.push(file.path());
        }
        let stays: BTreeSet<String> = {
            let kept = self.kept();
            kept.needed.union(&kept.in_hand).map(|digest| digest.hex().to_owned()).collect()
        };
        let mut bytes: u64 = entries.values().map(|entry| entry.bytes).sum();
        let mut oldest: Vec<_> =
            entries.into_iter().filter(|(stem, _)| !stays.contains(stem)).collect();
        oldest.sort_by_key(|(_, entry)| entry.used);
        for (_, entry) in oldest {
            if bytes <= self.room {
                break;
            }
            bytes -= entry.bytes;
            entry.files.iter().for_each(|path| remove(path));
            if let Some(metrics) = &self.metrics {
                metrics.evicted.with_label_values::<&str>(&[]).inc();
            }
        }
        self.fits.store(bytes <= self.room, Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            metrics.cached.with_label_values::<&str>(&[]).set(bytes);
        }
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.cpkg", digest.hex()))
    }

    /// The bytes of a package, if they are here and whole.
    pub fn bytes(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.file(digest);
        let read = canopy_files::read(&path, ARCHIVE).ok();
        let bytes = read.filter(|bytes| Digest::of(bytes) == *digest)?;
        // When it was used last is the file's time. A file system that cannot say so is no reason
        // not to use the package.
        let _ = canopy_files::open(&path).and_then(|file| file.set_modified(clock::now()));
        self.kept().in_hand.insert(digest.clone());
        Some(bytes)
    }

    fn signature_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.cpkg.minisig", digest.hex()))
    }

    /// The signature a package was kept with, to be checked again: keys may have been revoked.
    pub fn signature(&self, digest: &Digest) -> Option<String> {
        canopy_files::read_text(&self.signature_file(digest), SIGNATURE).ok()
    }

    /// Whether the file of a package is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.file(digest).is_file()
    }

    /// Version and digest of each package of this name that lies here with a signature, as the signature
    /// says: nothing of it is verified.
    pub fn signed(&self, name: &PackageName) -> Vec<(semver::Version, Digest)> {
        let Ok(files) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut found: Vec<_> = files
            .flatten()
            .filter_map(|file| {
                let file_name = file.file_name().into_string().ok()?;
                let digest = format!("sha256:{}", file_name.strip_suffix(".cpkg.minisig")?);
                let digest: Digest = digest.parse().ok()?;
                let signature = self.signature(&digest)?;
                let (of, version, signed) = sign::told(&signature)?;
                (of == *name && signed == digest && self.has(&digest)).then_some((version, digest))
            })
            .collect();
        found.sort();
        found
    }

    /// Keeps a package whose signature, digest and length were checked.
    pub fn keep(
        &self,
        digest: &Digest,
        bytes: &[u8],
        signature: Option<&str>,
    ) -> std::io::Result<()> {
        self.fits.store(false, Ordering::Relaxed);
        // The signature first: a package without one would have to be fetched again.
        if let Some(signature) = signature {
            self.write(digest, &self.signature_file(digest), signature.as_bytes())?;
        }
        self.write(digest, &self.file(digest), bytes)?;
        fs::File::open(&self.dir)?.sync_all()?;
        self.drop_part(digest);
        self.kept().in_hand.insert(digest.clone());
        self.evict();
        Ok(())
    }

    fn write(&self, digest: &Digest, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let new = self.dir.join(format!("{}.new", digest.hex()));
        let mut file = canopy_files::create(&new, 0o644)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    }
}

impl PackageSource for Cache {
    fn package(&self, digest: &Digest) -> Result<Arc<Package>, String> {
        let mut open = self.open();
        if let Some(package) = open.get(digest) {
            return Ok(package);
        }
        let path = self.file(digest);
        let bytes = self
            .bytes(digest)
            .ok_or_else(|| format!("{} is missing or damaged", path.display()))?;
        let package = Package::open(&bytes, &self.limits).map_err(|error| {
            format!("{}: {}", path.display(), crate::error::with_causes(&error))
        })?;
        let package = Arc::new(package);
        open.put(digest.clone(), Arc::clone(&package));
        Ok(package)
    }

    fn retain(&self, digests: &BTreeSet<Digest>) {
        self.open().retain(digests);
        *self.kept() = Kept { needed: digests.clone(), in_hand: BTreeSet::new() };
        self.evict();
    }
}

/// A package's files.
#[derive(Debug, Default)]
struct Entry {
    files: Vec<PathBuf>,
    bytes: u64,
    used: Option<SystemTime>,
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "old package stays in the cache");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::document::Format;
    use canopy_package::Manifest;
    use std::time::{Duration, UNIX_EPOCH};

    const FLOWMETER: &str = include_str!("../../../ebpf/packages/flowmeter/package.yaml");

    #[test]
    fn pipes_in_place_of_packages_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), Limits::default()).unwrap();
        let digest = Digest::of(b"package");
        for path in [cache.file(&digest), cache.signature_file(&digest), cache.part_file(&digest)] {
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        assert_eq!((cache.bytes(&digest), cache.signature(&digest)), (None, None));
        assert!(!cache.has(&digest) && cache.package(&digest).is_err());
        assert_eq!(cache.part(&digest), b"");
        cache.add_part(&digest, b"pack").unwrap();
        assert_eq!(cache.part(&digest), b"pack");
        cache.keep(&digest, b"package", Some("signature!")).unwrap();
        assert_eq!(cache.bytes(&digest).unwrap(), b"package");
        assert_eq!(cache.signature(&digest).unwrap(), "signature!");
    }

    /// A cache with room for so many files of 100 bytes, and files 0 to `files`, the lowest used
    /// longest ago.
    fn cache(room: u64, files: u8) -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), Limits::default()).unwrap().with_room(u64::MAX);
        for n in 0..files {
            let bytes = vec![n; 90];
            let digest = Digest::of(&bytes);
            cache.keep(&digest, &bytes, Some("signature!")).unwrap();
            let used = UNIX_EPOCH + Duration::from_secs(1_000 + u64::from(n));
            for path in [cache.file(&digest), cache.signature_file(&digest)] {
                fs::File::open(path).unwrap().set_modified(used).unwrap();
            }
        }
        (dir, cache.with_room(room * 100))
    }

    fn digest(n: u8) -> Digest {
        Digest::of(&[n; 90])
    }

    fn there(cache: &Cache) -> Vec<u8> {
        (0..10).filter(|n| cache.file(&digest(*n)).exists()).collect()
    }

    #[test]
    fn the_packages_used_longest_ago_go_first() {
        let (_dir, cache) = cache(3, 5);
        assert!(cache.bytes(&digest(1)).is_some(), "used just now");
        cache.retain(&BTreeSet::new());
        assert_eq!(there(&cache), [1, 3, 4]);
        assert!(!cache.signature_file(&digest(0)).exists(), "its signature went with it");
    }

    #[test]
    fn what_chains_need_stays_beyond_the_limit() {
        let (_dir, cache) = cache(1, 5);
        cache.retain(&[digest(0), digest(2)].into());
        assert_eq!(there(&cache), [0, 2]);
        // Another one comes in: it is in hand, the needed stay, and the next change may drop it.
        let bytes = vec![9; 90];
        cache.keep(&digest(9), &bytes, None).unwrap();
        assert_eq!(there(&cache), [0, 2, 9]);
        cache.begin();
        cache.keep(&digest(8), &[8; 90], None).unwrap();
        assert_eq!(there(&cache), [0, 2, 8]);
    }

    #[test]
    fn opened_packages_stay_as_far_as_there_is_room() {
        let (_dir, cache) = cache(5, 0);
        let package = |bytes: usize| {
            let object = ("main.o".to_owned(), vec![0; bytes]);
            Arc::new(Package {
                manifest: Manifest::read(FLOWMETER, Format::Yaml).unwrap(),
                objects: [object].into(),
                readme: None,
                license_text: None,
            })
        };
        let held = |cache: &Cache| -> Vec<u8> {
            (0..4).filter(|n| cache.opened(&digest(*n)).is_some()).collect()
        };
        let large = package(SPARE_BYTES / 2);
        cache.hold(&digest(0), &large);
        cache.hold(&digest(1), &large);
        assert_eq!(held(&cache), [0, 1]);
        // The one used longest ago goes first.
        assert!(cache.opened(&digest(0)).is_some());
        cache.hold(&digest(2), &package(1));
        assert_eq!(held(&cache), [0, 2]);
        // What chains need does not count.
        cache.retain(&[digest(0)].into());
        cache.hold(&digest(1), &large);
        cache.hold(&digest(3), &package(SPARE_BYTES / 2 - 1));
        assert_eq!(held(&cache), [0, 1, 2, 3]);
        cache.hold(&digest(2), &package(SPARE_BYTES + 1));
        assert_eq!(held(&cache), [0]);
    }

    #[test]
    fn a_download_that_broke_off_is_there_until_room_is_needed() {
        let (_dir, cache) = cache(2, 1);
        cache.add_part(&digest(5), &[5; 40]).unwrap();
        cache.add_part(&digest(5), &[5; 10]).unwrap();
        cache.retain(&[digest(0)].into());
        assert_eq!(cache.part(&digest(5)), [5; 50]);
        cache.keep(&digest(6), &[6; 90], None).unwrap();
        assert_eq!(cache.part(&digest(5)), [] as [u8; 0]);
        // What another process left is found at the start.
        fs::write(cache.dir.join("abc.new"), "broken off").unwrap();
        let dir = cache.dir.clone();
        let cache = Cache::new(&dir, Limits::default()).unwrap();
        cache.retain(&[digest(0)].into());
        assert!(!cache.dir.join("abc.new").exists());
    }
}
