//! Makes every attack anew: `cargo run -p canopy-attacks --example make`. For when the format changes
//! or an attack is added; what is in the tree otherwise stays as it was committed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a tool of the tests"
)]

use canopy_api::{Code, Digest, document::Format};
use canopy_attacks::{Attack, GENUINE, Lie, NAMES, NOW, Outcome, root};
use canopy_package::{
    Index, IndexEntry, Manifest, Package, PackageError, RepositoryId, SecretKey, TrustedKey,
    error::EntryFault,
    index::{highest_version, join, latest_expiry, split},
    repository::{INDEX, artifact_path, signature_path},
    sign::comment,
};
use std::{collections::BTreeMap, fs, path::Path};

const EXPIRES: u64 = NOW + 90 * 86_400;

/// A repository's files by path.
type Files = BTreeMap<String, Vec<u8>>;

fn main() {
    let keys = root().join("keys");
    fs::create_dir_all(&keys).unwrap();
    let (owner, neighbour) = (key(&keys, "owner"), key(&keys, "neighbour"));
    let world = World::new(owner, neighbour);
    for name in NAMES.iter().chain([&GENUINE]) {
        let dir = root().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        let made = world.attack(name);
        write(&dir.join("repository"), &made.repository);
        for (name, files) in [("before", &made.before), ("", &made.beside)] {
            write(&dir.join(name), files);
        }
        let mut text = serde_json::to_string_pretty(&made.attack).unwrap();
        text.push('\n');
        fs::write(dir.join("attack.json"), text).unwrap();
    }
}

fn write(dir: &Path, files: &Files) {
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The key of that name; made at the first time.
fn key(dir: &Path, name: &str) -> SecretKey {
    let path = dir.join(format!("{name}.key"));
    if let Ok(text) = fs::read_to_string(&path) {
        return SecretKey::from_file(&text).unwrap();
    }
    let key = SecretKey::generate().unwrap();
    fs::write(&path, key.to_file().unwrap()).unwrap();
    fs::write(dir.join(format!("{name}.pub")), key.public().unwrap().to_file()).unwrap();
    key
}

/// A package file, and what an index says of it.
#[derive(Clone)]
struct Published {
    entry: IndexEntry,
    bytes: Vec<u8>,
    signature: String,
}

struct Made {
    attack: Attack,
    repository: Files,
    before: Files,
    beside: Files,
}

struct World {
    owner: SecretKey,
    neighbour: SecretKey,
    old: Published,
    new: Published,
    other: Published,
}

impl World {
    fn new(owner: SecretKey, neighbour: SecretKey) -> Self {
        let object = canopy_test_support::compile_text(
            "
            #include <linux/bpf.h>
            #include <bpf/bpf_helpers.h>
            SEC(\"xdp\") int prog(struct xdp_md *ctx) { return XDP_PASS; }
            char _license[] SEC(\"license\") = \"GPL\";
            ",
        )
        .unwrap();
        let package = |name: &str, version: &str, readme: &str| {
            let manifest = format!(
                "{{ name: {name}, version: {version}, description: A {name}, license: MIT, \
                 programs: [{{ name: main, object: main.o, function: prog, hooks: [xdp] }}] }}"
            );
            let package = Package {
                manifest: Manifest::read(&manifest, Format::Yaml).unwrap(),
                objects: [("main.o".to_owned(), object.clone())].into(),
                readme: Some(readme.to_owned()),
                license_text: None,
            };
            published(&owner, name, version, package.build().unwrap())
        };
        Self {
            old: package("wall", "1.0.0", "# wall\n"),
            new: package(
                "wall",
                "1.1.0",
                "# wall\n\nWith a hole of 1.0.0 mended: CVE-0000-0000.\n",
            ),
            other: package("other", "1.1.0", "# other\n"),
            owner,
            neighbour,
        }
    }

    fn trusted(&self) -> TrustedKey {
        self.owner.public().unwrap().into()
    }

    fn owner_id(&self) -> String {
        self.owner.public().unwrap().id()
    }

    /// The repository as it ought to be.
    fn genuine(&self) -> Files {
        repository(&self.owner, 2, EXPIRES, &[&self.old, &self.new])
    }

    /// The repository with other bytes for 1.1.0 that its owner's key has signed and listed: what a
    /// thief of the key, or a careless owner, publishes.
    fn signed(&self, bytes: Vec<u8>) -> Files {
        let published = published(&self.owner, "wall", "1.1.0", bytes);
        repository(&self.owner, 2, EXPIRES, &[&self.old, &published])
    }

    #[expect(clippy::too_many_lines, reason = "one arm an attack")]
    fn attack(&self, name: &str) -> Made {
        let (artifact, signature) = paths(&self.new.entry);
        let given = Outcome::Given(self.new.entry.version.clone());
        let mut made = Made {
            attack: Attack {
                what: String::new(),
                asks: "wall@^1".parse().unwrap(),
                keys: vec![self.trusted()],
                revoked: Vec::new(),
                before: None,
                asks_before: None,
                lie: Lie::default(),
                registry: given.clone(),
                loader: given,
            },
            repository: self.genuine(),
            before: Files::new(),
            beside: Files::new(),
        };
        let (index, file) = ("the index", "the package file");
        let key = self.owner_id();
        let files = &mut made.repository;
        let attack = &mut made.attack;
        let what = match name {
            GENUINE => "Nothing is wrong: registry and loader give the newest version",
            "another-package-in-the-file" => {
                *files = self.signed(self.other.bytes.clone());
                attack.file(&PackageError::WrongPackage {
                    wanted: "wall 1.1.0".to_owned(),
                    found: "other 1.1.0".to_owned(),
                });
                "Signed and listed as wall, the file holds another package"
            }
            "another-package-signature" => {
                let mut entry = self.other.entry.clone();
                entry.name = "wall".parse().unwrap();
                let other = Published { entry, ..self.other.clone() };
                *files = repository(&self.owner, 2, EXPIRES, &[&self.old, &other]);
                attack.file(&PackageError::SignedForAnother {
                    wanted: comment(&other.entry.name, &other.entry.version, &other.entry.digest),
                    found: comment(
                        &self.other.entry.name,
                        &other.entry.version,
                        &other.entry.digest,
                    ),
                });
                "A genuine file with its genuine signature, listed under another package's name"
            }
            "artifact-of-another-version" => {
                files.insert(artifact, self.old.bytes.clone());
                files.insert(signature, self.old.signature.clone().into_bytes());
                attack.length(self.new.entry.length, self.old.entry.length);
                "The older version's file and signature in the place of the newer one's"
            }
            "bus-swaps-bytes" => {
                let mut swapped = self.new.bytes.clone();
                let middle = swapped.len() / 2;
                assert_ne!(
                    swapped[middle],
                    swapped[middle + 1],
                    "swapping has to change something"
                );
                swapped.swap(middle, middle + 1);
                let found = Digest::of(&swapped);
                made.beside.insert("arrives.cpkg".to_owned(), swapped);
                attack.lie.bytes = Some("arrives.cpkg".to_owned());
                let wanted = self.new.entry.digest.clone();
                attack.loader(&PackageError::WrongDigest { wanted, found });
                "The registry is honest; on the way two bytes change places"
            }
            "decompression-bomb" => {
                *files = self.signed(bomb());
                attack.file(&PackageError::TooLarge {
                    what: "the unpacked package".to_owned(),
                    limit: 64 << 20,
                });
                "A few kilobytes that unpack to more than a package may have"
            }
            "endless-artifact" => {
                attack.lie.endless = true;
                attack.sends(self.new.entry.length, canopy_api::wire::ARTIFACT_CHUNK as u64);
                "The registry sends the file, and goes on sending"
            }
            "endless-file" => {
                let mut endless = self.new.clone();
                endless.entry.length = 1 << 40;
                *files = repository(&self.owner, 2, EXPIRES, &[&self.old, &endless]);
                attack.index(&PackageError::TooLarge {
                    what: "wall 1.1.0".to_owned(),
                    limit: 16 << 20,
                });
                "The index names a file of a tebibyte"
            }
            "expired-index" => {
                *files = repository(&self.owner, 2, NOW - 1, &[&self.old, &self.new]);
                attack.index(&PackageError::IndexExpired { expires: NOW - 1 });
                "A mirror is stopped, so that nobody learns of newer versions (freeze)"
            }
            "expired-key" => {
                attack.keys[0].not_after = Some(NOW - 1);
                let not_after = NOW - 1;
                attack.index(&PackageError::KeyExpired { what: index, key, not_after });
                "A key whose time is over signs on"
            }
            "index-counts-for-ever" => {
                *files = repository(&self.owner, 2, u64::MAX, &[&self.old, &self.new]);
                let (expires, limit) = (u64::MAX, latest_expiry(NOW));
                attack.index(&PackageError::IndexExpiresTooLate { expires, limit });
                "Who has the key once signs an index that no clock ends, to freeze the repository later"
            }
            "index-version-used-up" => {
                *files = repository(&self.owner, u64::MAX, EXPIRES, &[&self.old, &self.new]);
                let (version, limit) = (u64::MAX, highest_version(NOW));
                attack.index(&PackageError::IndexVersionTooHigh { version, limit });
                "A publisher signs the highest version there is, so that nobody publishes any more"
            }
            "older-index-for-another-package" => {
                let mut withdrawn = self.old.clone();
                withdrawn.entry.yanked = true;
                let id = "5d41402abc4b2a76b9719d911017c592".parse().unwrap();
                let of = |version: u64, wall: &Published| {
                    repository_of(&self.owner, Some(&id), version, EXPIRES, &[&self.other, wall])
                };
                made.before = of(5, &withdrawn);
                *files = of(3, &self.old);
                attack.before = Some("before".to_owned());
                attack.asks_before = Some("other@^1".parse().unwrap());
                let older = PackageError::IndexRolledBack { version: 3, at_least: 5 };
                attack.index(&older);
                attack.loader = refused(older.code(), older.kind(), format!("wall 1.0.0: {older}"));
                "An older state of the repository is put back, for hosts that never had the package which \
                 was withdrawn since"
            }
            "index-of-another-time" => {
                let older = repository(&self.owner, 1, EXPIRES, &[&self.old]);
                let (json, _) = split(&files[INDEX]).unwrap();
                let (_, signature) = split(&older[INDEX]).unwrap();
                let mixed = join(json, signature);
                files.insert(INDEX.to_owned(), mixed);
                attack.index(&PackageError::Tampered { what: index, key });
                "The index of one time with the signature of another (mix and match)"
            }
            "key-of-another-repository" => {
                let ours = published(&self.neighbour, "wall", "1.1.0", self.new.bytes.clone());
                *files = repository(&self.neighbour, 2, EXPIRES, &[&ours]);
                attack.index(&PackageError::UntrustedKey {
                    what: index,
                    key: self.neighbour.public().unwrap().id(),
                    trusted: vec![key],
                });
                "The owner of another repository signs what belongs to this one"
            }
            "older-index" => {
                made.before = self.genuine();
                *files = repository(&self.owner, 1, EXPIRES, &[&self.old]);
                attack.before = Some("before".to_owned());
                let older = PackageError::IndexRolledBack { version: 1, at_least: 2 };
                attack.index(&older);
                attack.loader = refused(older.code(), older.kind(), format!("wall 1.0.0: {older}"));
                "An older state of the repository, genuinely signed, is put back (rollback)"
            }
            "path-in-file-name" => {
                let entry = "../../etc/cron.d/canopy";
                *files = self.signed(traversal(entry));
                attack.file(&PackageError::Entry {
                    name: entry.to_owned(),
                    fault: EntryFault::Traversal,
                });
                "A file in the package is named to be written elsewhere"
            }
            "path-in-package-name" => {
                let text = str::from_utf8(split(&files[INDEX]).unwrap().0).unwrap();
                let bytes = text.replacen("\"wall\"", "\"../../etc\"", 1).into_bytes();
                let signature = self.owner.sign_index(&bytes, 2, None).unwrap();
                attack.index(&Index::open_unsigned(&bytes).unwrap_err());
                files.insert(INDEX.to_owned(), join(&bytes, &signature));
                "A package in the index is named to be read from elsewhere"
            }
            "registry-goes-back" => {
                made.before = self.genuine();
                attack.before = Some("before".to_owned());
                attack.lie.version = Some(self.old.entry.version.clone());
                attack.loader = refused(
                    Code::Denied,
                    "downgrade",
                    "the registry answered wall 1.0.0, which is older than the 1.1.0 of this host, \
                     which will do"
                        .to_owned(),
                );
                "The registry names an older version, published and good, to bring a hole back"
            }
            "registry-names-another-digest" => {
                attack.lie.digest = Some(self.old.entry.digest.clone());
                attack.loader(&PackageError::WrongDigest {
                    wanted: self.new.entry.digest.clone(),
                    found: self.old.entry.digest.clone(),
                });
                "The registry names another file than the index does"
            }
            "registry-names-another-package" => {
                attack.lie.package = Some("other".parse().unwrap());
                attack.loader = refused(
                    Code::Denied,
                    "answer",
                    "the registry answered other 1.1.0 to the question for wall@^1".to_owned(),
                );
                "The registry answers with another package than was asked for"
            }
            "revoked-file" => {
                attack.revoked = vec![self.new.entry.digest.clone()];
                let digest = self.new.entry.digest.clone();
                attack.file(&PackageError::DigestRevoked { digest });
                "A file known to be bad is offered on"
            }
            "revoked-key" => {
                attack.keys[0].revoked = true;
                attack.keys.push(self.neighbour.public().unwrap().into());
                attack.index(&PackageError::KeyRevoked { what: index, key });
                "A lost key signs on"
            }
            "unsigned-index" => {
                let json = split(&files[INDEX]).unwrap().0.to_vec();
                files.insert(INDEX.to_owned(), json);
                attack.index(&PackageError::Unsigned { what: index });
                "Nobody has signed the index"
            }
            "unsigned-package" => {
                files.remove(&signature);
                attack.file(&PackageError::Unsigned { what: file });
                "Nobody has signed the package"
            }
            "wrong-digest" => {
                let bytes = files.get_mut(&artifact).unwrap();
                bytes[40] ^= 1;
                let (wanted, found) = (self.new.entry.digest.clone(), Digest::of(bytes));
                attack.file(&PackageError::WrongDigest { wanted, found });
                "One bit of the file is turned over"
            }
            "wrong-length" => {
                files.get_mut(&artifact).unwrap().push(0);
                attack.length(self.new.entry.length, self.new.entry.length + 1);
                "A byte is added to the file"
            }
            unknown => panic!("how is {unknown} made?"),
        };
        what.clone_into(&mut attack.what);
        made
    }
}

trait Expect {
    fn loader(&mut self, error: &PackageError);
    fn file(&mut self, error: &PackageError);
    fn index(&mut self, error: &PackageError);
    fn sends(&mut self, announced: u64, sent: u64);
    fn length(&mut self, wanted: u64, found: u64);
}

impl Expect for Attack {
    /// Only the loader can see it.
    fn loader(&mut self, error: &PackageError) {
        self.loader = refused(error.code(), error.kind(), format!("wall 1.1.0: {error}"));
    }

    /// Both refuse the file. To whoever asks a registry it is not the question that is wrong.
    fn file(&mut self, error: &PackageError) {
        let said = format!("wall 1.1.0 from repository \"test\" is refused: {error}");
        self.registry = refused(Code::Denied, error.kind(), said);
        self.loader(error);
    }

    /// The loader refuses it while it comes.
    fn sends(&mut self, announced: u64, sent: u64) {
        let said = format!("wall 1.1.0: the registry announced {announced} bytes and sends {sent}");
        self.loader = refused(Code::Denied, "length", said);
    }

    /// The registry refuses the file once it is read, the loader while it comes.
    fn length(&mut self, wanted: u64, found: u64) {
        self.file(&PackageError::WrongLength { wanted, found });
        self.sends(wanted, found);
    }

    /// Both refuse the index.
    fn index(&mut self, error: &PackageError) {
        let said = format!("repository \"test\" cannot be used: {error}");
        self.registry = refused(Code::Denied, error.kind(), said);
        self.loader(error);
    }
}

fn refused(code: Code, reason: &str, message: String) -> Outcome {
    Outcome::Refused { code, reason: reason.to_owned(), message }
}

fn published(key: &SecretKey, name: &str, version: &str, bytes: Vec<u8>) -> Published {
    let entry = IndexEntry {
        name: name.parse().unwrap(),
        version: version.parse().unwrap(),
        digest: Digest::of(&bytes),
        length: bytes.len() as u64,
        yanked: false,
    };
    let signature = key.sign_package(&bytes, &entry.name, &entry.version).unwrap();
    Published { entry, bytes, signature }
}

fn paths(entry: &IndexEntry) -> (String, String) {
    (artifact_path(&entry.name, &entry.version), signature_path(&entry.name, &entry.version))
}

/// The files of a repository with these packages, as it was before there were ids.
fn repository(key: &SecretKey, version: u64, expires: u64, packages: &[&Published]) -> Files {
    repository_of(key, None, version, expires, packages)
}

/// The files of a repository with this id.
fn repository_of(
    key: &SecretKey,
    id: Option<&RepositoryId>,
    version: u64,
    expires: u64,
    packages: &[&Published],
) -> Files {
    let entries = packages.iter().map(|published| published.entry.clone()).collect();
    let index = Index { version, expires, packages: entries, repository: id.cloned() };
    let (bytes, signature) = index.sign(key).unwrap();
    let mut files = Files::from([(INDEX.to_owned(), join(&bytes, &signature))]);
    for published in packages {
        let (artifact, signature) = paths(&published.entry);
        files.insert(artifact, published.bytes.clone());
        files.insert(signature, published.signature.clone().into_bytes());
    }
    files
}

/// 65 MiB of zeros.
fn bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
    let block = vec![0; 1 << 20];
    for _ in 0..65 {
        std::io::Write::write_all(&mut encoder, &block).unwrap();
    }
    encoder.finish().unwrap()
}

/// An archive with a file of that name, which tar's own setters would refuse.
fn traversal(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(1);
    header.set_mode(0o644);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, b"x".as_slice()).unwrap();
    zstd::encode_all(tar.into_inner().unwrap().as_slice(), 19).unwrap()
}
