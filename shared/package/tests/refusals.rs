//! Every attack on a package file, a signature or an index is refused, each with its own error.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::Digest;
use canopy_package::{
    Index, IndexEntry, Limits, Package, PackageError, PublicKey, TrustedKey,
    error::EntryFault,
    index::{highest_version, latest_expiry, split},
    repository::Publisher,
    sign::verify_package,
};
use common::{key, minimal};
use tar::{EntryType, Header};

fn open(bytes: &[u8]) -> PackageError {
    Package::open(bytes, &Limits::default()).unwrap_err()
}

/// A package file with these entries, whatever they are.
fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, bytes) in entries {
        let mut header = Header::new_ustar();
        // Written into the field as it stands: the library's setters refuse what is tested here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap()
}

const MANIFEST: &str = "{ name: p, version: 1.0.0, description: p, license: MIT, \
    programs: [{ name: p, object: p.o, function: p, hooks: [xdp] }] }";

/// A good package file and one more entry.
fn with(name: &str, kind: EntryType) -> Vec<u8> {
    archive(&[
        ("package.yaml", EntryType::Regular, MANIFEST.as_bytes()),
        ("p.o", EntryType::Regular, b"object"),
        (name, kind, b""),
    ])
}

#[test]
fn a_package_cut_short_anywhere_is_refused() {
    let whole = minimal().build().unwrap();
    for length in (0..whole.len()).step_by(17).chain([whole.len() - 1]) {
        assert!(
            matches!(open(&whole[..length]), PackageError::Damaged { .. }),
            "cut at {length} of {}",
            whole.len()
        );
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = minimal().build().unwrap();
    bytes.push(0);
    assert!(matches!(open(&bytes), PackageError::Damaged { .. }));
}

#[test]
fn an_oversized_file_is_refused_before_it_is_read() {
    let limits = Limits { archive_bytes: 100, ..Limits::default() };
    let error = Package::open(&[0; 101], &limits).unwrap_err();
    assert!(matches!(error, PackageError::TooLarge { limit: 100, .. }), "{error}");
}

#[test]
fn a_decompression_bomb_is_stopped_at_the_limit() {
    // 1 GiB of zeros in a few dozen kilobytes; the frame does not tell its size.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let block = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut encoder, &block).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20, "the bomb itself is small: {}", bomb.len());
    let before = std::time::Instant::now();
    assert!(matches!(open(&bomb), PackageError::TooLarge { .. }));
    assert!(before.elapsed().as_secs() < 20);
}

#[test]
fn a_window_too_large_for_memory_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.long_distance_matching(true).unwrap();
    std::io::Write::write_all(&mut encoder, &vec![7; 1 << 20]).unwrap();
    assert!(matches!(open(&encoder.finish().unwrap()), PackageError::Damaged { .. }));
}

#[test]
fn only_plain_files_of_plain_names() {
    use EntryFault as Fault;
    for (name, kind, fault) in [
        ("link", EntryType::Symlink, Fault::NotAFile),
        ("hard", EntryType::Link, Fault::NotAFile),
        ("tty", EntryType::Char, Fault::NotAFile),
        ("disk", EntryType::Block, Fault::NotAFile),
        ("pipe", EntryType::Fifo, Fault::NotAFile),
        ("dir", EntryType::Directory, Fault::NotAFile),
        ("long", EntryType::GNULongName, Fault::NotAFile),
        ("pax", EntryType::XHeader, Fault::NotAFile),
        ("sparse", EntryType::GNUSparse, Fault::NotAFile),
        ("/etc/passwd", EntryType::Regular, Fault::Absolute),
        ("../escape.o", EntryType::Regular, Fault::Traversal),
        ("a/../../b.o", EntryType::Regular, Fault::Traversal),
        ("a/b.o", EntryType::Regular, Fault::Nested),
        ("./p.o", EntryType::Regular, Fault::Nested),
        (".hidden", EntryType::Regular, Fault::Name),
        ("a b", EntryType::Regular, Fault::Name),
        ("a\\b", EntryType::Regular, Fault::Name),
        ("p.o", EntryType::Regular, Fault::Duplicate),
        ("P.O", EntryType::Regular, Fault::CaseCollision),
        ("extra.o", EntryType::Regular, Fault::Unmentioned),
    ] {
        match open(&with(name, kind)) {
            PackageError::Entry { fault: found, .. } => assert_eq!(found, fault, "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn too_many_files_are_refused() {
    let names: Vec<_> = (0..300).map(|i| format!("f{i}")).collect();
    let entries: Vec<_> =
        names.iter().map(|name| (name.as_str(), EntryType::Regular, b"".as_slice())).collect();
    assert!(matches!(open(&archive(&entries)), PackageError::TooManyFiles { limit: 256 }));
}

#[test]
fn a_size_that_is_not_there_is_refused() {
    let mut tar = Vec::new();
    let mut header = Header::new_ustar();
    header.set_path("package.yaml").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&[b'x'; 512]);
    let bytes = zstd::encode_all(tar.as_slice(), 3).unwrap();
    assert!(matches!(open(&bytes), PackageError::Damaged { .. }));
}

#[test]
fn a_manifest_is_needed_and_must_be_right() {
    let object = ("p.o", EntryType::Regular, b"object".as_slice());
    assert!(matches!(open(&archive(&[object])), PackageError::NoManifest));
    let wrong = MANIFEST.replace("xdp", "xpd");
    let wrong = archive(&[("package.yaml", EntryType::Regular, wrong.as_bytes()), object]);
    assert!(matches!(open(&wrong), PackageError::Manifest(_)));
    let lone = archive(&[("package.yaml", EntryType::Regular, MANIFEST.as_bytes())]);
    let PackageError::Manifest(problems) = open(&lone) else { panic!("the object is missing") };
    assert_eq!(problems.0[0].path, "programs[0].object");
}

/// Name, version and bytes that a signature is made for.
struct Signed {
    bytes: Vec<u8>,
    signature: String,
    trusted: Vec<TrustedKey>,
}

impl Signed {
    fn new() -> Self {
        let (key, trusted) = key();
        let bytes = b"a package file".to_vec();
        let signature = key
            .sign_package(&bytes, &"firewall".parse().unwrap(), &"0.1.0".parse().unwrap())
            .unwrap();
        Self { bytes, signature, trusted }
    }

    fn verify(&self, name: &str, version: &str, now: u64) -> Result<PublicKey, PackageError> {
        verify_package(
            &self.bytes,
            &self.signature,
            &self.trusted,
            now,
            &name.parse().unwrap(),
            &version.parse().unwrap(),
            &Digest::of(&self.bytes),
        )
    }

    fn refusal(&self) -> PackageError {
        self.verify("firewall", "0.1.0", 100).unwrap_err()
    }
}

#[test]
fn a_good_signature_is_told_by_its_key() {
    let signed = Signed::new();
    assert_eq!(signed.verify("firewall", "0.1.0", 100).unwrap(), signed.trusted[0].key);
}

#[test]
fn unsigned_is_refused() {
    let mut signed = Signed::new();
    signed.signature = String::new();
    assert!(matches!(signed.refusal(), PackageError::Unsigned { .. }));
}

#[test]
fn a_key_nobody_trusts_is_refused() {
    let mut signed = Signed::new();
    signed.trusted = key().1;
    assert!(matches!(signed.refusal(), PackageError::UntrustedKey { .. }));
    signed.trusted.clear();
    assert!(matches!(signed.refusal(), PackageError::UntrustedKey { .. }));
}

#[test]
fn changed_bytes_are_refused() {
    let mut signed = Signed::new();
    signed.bytes[0] ^= 1;
    assert!(matches!(signed.refusal(), PackageError::Tampered { .. }));
}

#[test]
fn bytes_that_are_not_the_digest_asked_for_are_refused() {
    let signed = Signed::new();
    let (name, version) = ("firewall".parse().unwrap(), "0.1.0".parse().unwrap());
    let other = Digest::of(b"other");
    let (bytes, keys) = (&signed.bytes, &signed.trusted);
    let error =
        verify_package(bytes, &signed.signature, keys, 0, &name, &version, &other).unwrap_err();
    assert!(matches!(error, PackageError::WrongDigest { .. }));
}

#[test]
fn a_genuine_signature_of_another_package_is_refused() {
    let signed = Signed::new();
    for (name, version) in [("ratelimit", "0.1.0"), ("firewall", "0.1.1")] {
        let error = signed.verify(name, version, 100).unwrap_err();
        assert!(matches!(error, PackageError::SignedForAnother { .. }), "{error}");
    }
}

#[test]
fn a_changed_trusted_comment_is_refused() {
    let mut signed = Signed::new();
    signed.signature = signed.signature.replace("version=0.1.0", "version=0.2.0");
    let error = signed.verify("firewall", "0.2.0", 100).unwrap_err();
    assert!(matches!(error, PackageError::Tampered { .. }), "{error}");
}

#[test]
fn a_key_counts_until_its_end() {
    let mut signed = Signed::new();
    signed.trusted[0].not_after = Some(100);
    assert!(signed.verify("firewall", "0.1.0", 100).is_ok());
    let error = signed.verify("firewall", "0.1.0", 101).unwrap_err();
    assert!(matches!(error, PackageError::KeyExpired { not_after: 100, .. }));
}

#[test]
fn a_revoked_key_counts_nowhere_even_if_listed_twice() {
    let mut signed = Signed::new();
    signed.trusted.push(TrustedKey { revoked: true, ..signed.trusted[0].clone() });
    assert!(matches!(signed.refusal(), PackageError::KeyRevoked { .. }));
}

#[test]
fn a_signature_that_is_known_does_not_outlive_its_key() {
    let mut signed = Signed::new();
    let fine = |signed: &Signed| signed.verify("firewall", "0.1.0", 100);
    assert!(fine(&signed).is_ok() && fine(&signed).is_ok());
    signed.trusted[0].not_after = Some(99);
    assert!(matches!(signed.refusal(), PackageError::KeyExpired { not_after: 99, .. }));
    signed.trusted[0].revoked = true;
    assert!(matches!(signed.refusal(), PackageError::KeyRevoked { .. }));
    signed.trusted = Signed::new().trusted;
    assert!(matches!(signed.refusal(), PackageError::UntrustedKey { .. }));
}

#[test]
fn two_keys_may_be_trusted_while_one_replaces_the_other() {
    let mut signed = Signed::new();
    signed.trusted.insert(0, key().1.remove(0));
    assert!(signed.verify("firewall", "0.1.0", 100).is_ok());
}

#[test]
fn a_malformed_signature_is_refused_without_harm() {
    let good = Signed::new();
    let lines: Vec<_> = good.signature.lines().collect();
    for bad in [
        "garbage".to_owned(),
        lines[..3].join("\n"),
        // The library would read beyond the end of this one.
        format!("{}\n{}\n{}\nAAAA\n", lines[0], lines[1], lines[2]),
        format!("{}\n{}\n{}\n{}\n", lines[0], lines[3], lines[2], lines[3]),
        format!("{}\nextra\n", good.signature),
        "x".repeat(100_000),
    ] {
        let signed = Signed { signature: bad, ..Signed::new() };
        assert!(matches!(signed.refusal(), PackageError::SignatureFormat { .. }));
    }
}

fn index(version: u64, expires: u64) -> Index {
    let entry = IndexEntry {
        name: "firewall".parse().unwrap(),
        version: "0.1.0".parse().unwrap(),
        digest: Digest::of(b"genuine"),
        length: 7,
        yanked: false,
    };
    Index { version, expires, packages: vec![entry], repository: None }
}

#[test]
fn an_older_index_is_refused() {
    let (key, trusted) = key();
    let (bytes, signature) = index(4, 1_000).sign(&key).unwrap();
    assert!(Index::open(&bytes, &signature, &trusted, 100, 4).is_ok());
    let error = Index::open(&bytes, &signature, &trusted, 100, 5).unwrap_err();
    assert!(matches!(error, PackageError::IndexRolledBack { version: 4, at_least: 5 }));
}

#[test]
fn an_expired_index_is_refused() {
    let (key, trusted) = key();
    let (bytes, signature) = index(1, 1_000).sign(&key).unwrap();
    let error = Index::open(&bytes, &signature, &trusted, 1_001, 0).unwrap_err();
    assert!(matches!(error, PackageError::IndexExpired { expires: 1_000 }));
    assert!(Index::open_to_extend(&bytes, &signature, &trusted, 1_001).is_ok());
}

/// A version or an expiry that would leave none for those after it, whatever was seen before.
#[test]
fn an_index_beyond_the_bounds_of_its_time_is_refused() {
    const NOW: u64 = 1_767_225_600;
    const DAY: u64 = 86_400;
    let (key, trusted) = key();
    let open = |version: u64, expires: u64, at_least: u64| {
        let (bytes, signature) = index(version, expires).sign(&key).unwrap();
        Index::open(&bytes, &signature, &trusted, NOW, at_least)
    };
    let (highest, latest) = (NOW + DAY, NOW + 731 * DAY + DAY);
    assert_eq!((highest_version(NOW), latest_expiry(NOW)), (highest, latest));
    for version in [1, 42, NOW, highest] {
        for expires in [NOW, latest] {
            // However far it rises: who was away long has to take it.
            open(version, expires, 1).unwrap();
        }
    }
    for version in [highest + 1, 1 << 53, u64::MAX - 1, u64::MAX] {
        for at_least in [0, 1, u64::MAX] {
            let error = open(version, NOW + DAY, at_least).unwrap_err();
            assert!(
                matches!(error, PackageError::IndexVersionTooHigh { version: v, limit }
                    if v == version && limit == highest),
                "{error}"
            );
        }
    }
    for expires in [latest + 1, 1 << 53, u64::MAX - 1, u64::MAX] {
        let error = open(2, expires, 1).unwrap_err();
        assert!(
            matches!(error, PackageError::IndexExpiresTooLate { expires: e, limit }
                if e == expires && limit == latest),
            "{error}"
        );
        assert!(!error.remedy().is_empty());
    }
}

#[test]
fn a_publisher_signs_nothing_that_readers_refuse() {
    const NOW: u64 = 1_767_225_600;
    let (key, _) = key();
    let publisher = Publisher::new(&key, NOW);
    for version in [highest_version(NOW), u64::MAX - 1, u64::MAX] {
        let error = publisher.refresh(&index(version, 1)).unwrap_err();
        assert!(matches!(error, PackageError::IndexVersionTooHigh { .. }), "{error}");
    }
    let for_ever = Publisher { lifetime: u64::MAX, ..publisher };
    let error = for_ever.refresh(&index(1, 1)).unwrap_err();
    assert!(matches!(error, PackageError::IndexExpiresTooLate { .. }), "{error}");
    publisher.refresh(&index(highest_version(NOW) - 1, 1)).unwrap();
}

#[test]
fn a_repositorys_id_is_signed_and_kept() {
    const NOW: u64 = 1_767_225_600;
    let (key, trusted) = key();
    let publisher = Publisher::new(&key, NOW);
    let first = publisher.refresh(&index(1, 1)).unwrap();
    let second = publisher.refresh(&first.index).unwrap();
    let file = &second.files[0].1;
    let (json, signature) = split(file).unwrap();
    let (read, source) = Index::open_signed(json, signature, &trusted, NOW).unwrap();
    assert!(read.repository.is_some());
    assert_eq!([&first.index.repository, &source.repository], [&read.repository; 2]);
    assert_eq!(Index::read_unverified(file).unwrap().repository, read.repository);
    assert_ne!(publisher.refresh(&index(1, 1)).unwrap().index.repository, read.repository);
    // Readers from before ids read the same JSON.
    assert!(!String::from_utf8(json.to_vec()).unwrap().contains("repository"));
    let other = signature.replace("repository=", "repository=f");
    assert!(Index::open_signed(json, &other, &trusted, NOW).is_err());
}

#[test]
fn an_index_of_another_key_or_with_changes_is_refused() {
    let (owner, trusted) = key();
    let (bytes, _) = index(1, 1_000).sign(&owner).unwrap();
    let foreign = key().0.sign_index(&bytes, 1, None).unwrap();
    let error = Index::open(&bytes, &foreign, &trusted, 0, 0).unwrap_err();
    assert!(matches!(error, PackageError::UntrustedKey { .. }));

    let good = owner.sign_index(&bytes, 1, None).unwrap();
    let changed = index(2, 1_000).to_bytes().unwrap();
    let error = Index::open(&changed, &good, &trusted, 0, 0).unwrap_err();
    assert!(matches!(error, PackageError::Tampered { .. }));
}

#[test]
fn an_index_with_a_version_twice_is_refused() {
    let mut index = index(1, 1_000);
    index.packages.push(index.packages[0].clone());
    let error = Index::open_unsigned(&index.to_bytes().unwrap()).unwrap_err();
    assert!(matches!(error, PackageError::IndexFormat { .. }));
}

#[test]
fn a_path_cannot_be_put_into_a_name_or_a_version() {
    let (key, trusted) = key();
    let text = String::from_utf8(index(1, 1_000).to_bytes().unwrap()).unwrap();
    for (from, to) in [("firewall", "../../etc"), ("0.1.0", "0.1.0/../..")] {
        let bytes = text.replace(from, to).into_bytes();
        let signature = key.sign_index(&bytes, 1, None).unwrap();
        let error = Index::open(&bytes, &signature, &trusted, 0, 0).unwrap_err();
        assert!(matches!(error, PackageError::IndexFormat { .. }), "{error}");
    }
}

#[test]
fn a_file_that_is_not_the_index_s_is_refused() {
    let index = index(1, 1_000);
    let entry = &index.packages[0];
    assert!(entry.check(b"genuine").is_ok());
    assert!(matches!(entry.check(b"genuinf"), Err(PackageError::WrongDigest { .. })));
    assert!(matches!(entry.check(b"genuine "), Err(PackageError::WrongLength { .. })));
}

#[test]
fn every_error_is_one_line_with_a_remedy() {
    let signed = Signed::new();
    let lines = |error: &PackageError| {
        for text in [error.to_string(), error.remedy()] {
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
    };
    lines(&Signed { signature: String::new(), ..Signed::new() }.refusal());
    lines(&Signed { trusted: Vec::new(), ..signed }.refusal());
    lines(&open(b"garbage"));
    lines(&open(&with("../x", EntryType::Regular)));
}
