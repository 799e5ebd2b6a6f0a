//! `package build` and `package check`: from a directory to a package file.

use super::{open, refused, verdict};
use crate::{
    failure::{Exit, Failure},
    files,
    output::Screen,
    progress::Progress,
};
use canopy_api::{Digest, Problems, document::Format, near, text::is_unprintable, wire::FACTS};
use canopy_package::{
    Limits, Manifest, Package, PublicKey, TrustedKey,
    archive::{LICENSE, MANIFEST, README},
    sign::verify_package,
};
use canopy_runtime::clock;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Makes the package file.
pub fn run(directory: &Path, file: Option<&Path>, screen: &mut Screen) -> Result<Exit, Failure> {
    let package = read(directory)?;
    verdict::ask(&package, &manifest_path(directory), false, screen)?;
    let bytes = {
        let _progress = Progress::start("compressing");
        package.build().map_err(|error| refused(&manifest_path(directory), &error))?
    };
    let Manifest { name, version, .. } = &package.manifest;
    let file = file.map_or_else(|| PathBuf::from(format!("{name}-{version}.cpkg")), Path::to_owned);
    if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        files::make_directory(parent)?;
    }
    files::write_atomic(&file, &bytes, files::PUBLIC)?;
    screen.print(&format!("{}\n", file.display()))?;
    screen.note(&format!("{name} {version}, {} bytes, {}", bytes.len(), Digest::of(&bytes)));
    warn_of_facts(&package.manifest, screen);
    Ok(Exit::Done)
}

/// Says everything that is wrong.
pub fn check(
    path: &Path,
    keys: &[PathBuf],
    load: bool,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let (package, signed) = if path.is_dir() {
        if !keys.is_empty() {
            return Err(Failure::new(Exit::Invalid, "a directory has no signature to check")
                .at(path.display().to_string())
                .fix("build it, and give the .cpkg file"));
        }
        (read(path)?, None)
    } else {
        let (bytes, package) = open(path)?;
        let signed =
            if keys.is_empty() { None } else { Some(verify(path, &bytes, &package, keys)?) };
        (package, signed)
    };
    warn_of_facts(&package.manifest, screen);
    warn_of_hidden(&package, screen);
    let place = if path.is_dir() { manifest_path(path) } else { path.display().to_string() };
    verdict::ask(&package, &place, load, screen)?;
    let Manifest { name, version, programs, config, metrics, .. } = &package.manifest;
    let signed = signed.map(|key| format!(", signed by {key}")).unwrap_or_default();
    screen.print(&format!(
        "{name} {version}: no problems ({} programs, {} settings, {} metrics{signed})\n",
        programs.len(),
        config.len(),
        metrics.len(),
    ))?;
    Ok(Exit::Done)
}

/// Facts that are asked for and that no host of today tells: a slip, or those of a later Canopy. An
/// object that asks for one is silently used nowhere.
fn warn_of_facts(manifest: &Manifest, screen: &mut Screen) {
    let whole = [("requires".to_owned(), &manifest.requires)];
    let variants = manifest.programs.iter().enumerate().flat_map(|(p, program)| {
        let variants = program.variants.iter().enumerate();
        variants.map(move |(v, variant)| {
            (format!("programs[{p}].variants[{v}].requires"), &variant.requires)
        })
    });
    for (at, requires) in whole.into_iter().chain(variants) {
        for (i, feature) in requires.features.iter().enumerate() {
            if FACTS.contains(&feature.as_str()) {
                continue;
            }
            let remedy = match near::nearest(feature, FACTS) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known are {}", FACTS.join(", ")),
            };
            screen.note(&format!(
                "warning: {at}.features[{i}]: canopy doctor tells of no \"{feature}\"; {remedy}"
            ));
        }
    }
}

/// Characters that nobody sees, in the texts that come with a package: they are shown as such. What
/// joins letters (U+200C, U+200D) some scripts and pictures need.
fn warn_of_hidden(package: &Package, screen: &mut Screen) {
    let hidden = |c: &char| is_unprintable(*c) && !matches!(c, '\t' | '\u{200c}' | '\u{200d}');
    for (file, text) in [(README, &package.readme), (LICENSE, &package.license_text)] {
        for (number, line) in (1..).zip(text.as_deref().unwrap_or_default().lines()) {
            if let Some(c) = line.chars().find(hidden) {
                let code = u32::from(c);
                screen.note(&format!(
                    "warning: {file} line {number}: a character that nobody sees (U+{code:04X}); remove it"
                ));
            }
        }
    }
}

fn verify(
    path: &Path,
    bytes: &[u8],
    package: &Package,
    keys: &[PathBuf],
) -> Result<String, Failure> {
    let keys = keys.iter().map(|key| public_key(key)).collect::<Result<Vec<_>, _>>()?;
    let beside = files::beside(path, ".minisig");
    let signature =
        if beside.exists() { files::read_text(&beside, 1 << 16)? } else { String::new() };
    let Manifest { name, version, .. } = &package.manifest;
    verify_package(bytes, &signature, &keys, now(), name, version, &Digest::of(bytes))
        .map(|key| key.id())
        .map_err(|error| refused(&beside.display().to_string(), &error))
}

/// A public key file, as a key that is trusted.
pub(super) fn public_key(path: &Path) -> Result<TrustedKey, Failure> {
    let key: PublicKey = files::read_text(path, 1 << 16)?
        .parse()
        .map_err(|error| refused(&path.display().to_string(), &error))?;
    Ok(key.into())
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    clock::unix_millis(clock::now()) / 1000
}

/// The package a directory makes: manifest, README, licence and the objects the manifest names.
/// Every mistake at once.
fn read(directory: &Path) -> Result<Package, Failure> {
    let limits = Limits::default();
    let place = directory.join(MANIFEST);
    if !place.exists() {
        return Err(Failure::new(Exit::NotFound, format!("there is no {MANIFEST}"))
            .at(directory.display().to_string())
            .fix("canopy package init NAME makes a directory with one"));
    }
    let text = files::read_text(&place, limits.manifest_bytes)?;
    let manifest = Manifest::read(&text, Format::Yaml)
        .map_err(|problems| Failure::in_file(&manifest_path(directory), problems))?;
    let mut problems = Problems::default();
    let mut objects = BTreeMap::new();
    for (i, program) in manifest.programs.iter().enumerate() {
        for (place, file) in program.objects() {
            match files::read_bounded(&directory.join(file), limits.unpacked_bytes) {
                Ok(bytes) => {
                    objects.insert(file.to_owned(), bytes);
                }
                Err(failure) => {
                    problems.0.extend(failure.problems.into_iter().map(|mut problem| {
                        problem.path = format!("programs[{i}].{place}");
                        problem.remedy = Some(how_to_compile(directory, file));
                        problem
                    }));
                }
            }
        }
    }
    let optional = |name: &str| {
        let path = directory.join(name);
        path.exists().then(|| files::read_text(&path, limits.unpacked_bytes)).transpose()
    };
    let (readme, license_text) = (optional(README)?, optional(LICENSE)?);
    let package = Package { manifest, objects, readme, license_text };
    // Of an object that is not there everything would be missing.
    if problems.0.is_empty()
        && let Err(wrong) = package.check_objects()
    {
        problems = wrong;
    }
    problems
        .into_result()
        .map_err(|problems| Failure::in_file(&manifest_path(directory), problems))?;
    Ok(package)
}

fn how_to_compile(directory: &Path, object: &str) -> String {
    let source = source_of(object);
    if directory.join(&source).exists() {
        format!("compile {source}: canopy package build {} --compile", directory.display())
    } else {
        format!("put {object} beside {MANIFEST}, or correct the name")
    }
}

/// `x.bpf.o` and `x.o` come from `x.bpf.c`.
fn source_of(object: &str) -> String {
    let stem = object.strip_suffix(".o").unwrap_or(object);
    let stem = stem.strip_suffix(".bpf").unwrap_or(stem);
    format!("{stem}.bpf.c")
}

fn manifest_path(directory: &Path) -> String {
    directory.join(MANIFEST).display().to_string()
}

/// Compiles every `*.bpf.c` of the directory, each to the object of the same name.
pub fn compile(directory: &Path, include: &[PathBuf]) -> Result<(), Failure> {
    let entries =
        fs::read_dir(directory).map_err(|error| Failure::io("read", directory, &error))?;
    let mut sources: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".bpf.c"))
        .collect();
    sources.sort();
    if sources.is_empty() {
        return Err(Failure::new(Exit::NotFound, "there is no *.bpf.c to compile")
            .at(directory.display().to_string())
            .fix("build without --compile uses the objects that are there"));
    }
    // The kernel's asm/types.h is in a directory of its own for each architecture.
    let machine = nix::sys::utsname::uname()
        .map(|names| names.machine().to_string_lossy().into_owned())
        .unwrap_or_default();
    for source in &sources {
        let _progress = Progress::start(format!("compiling {}", source.display()));
        let output = Command::new("clang")
            .args(["-target", "bpf", "-g", "-O2", "-Wall", "-mcpu=v3"])
            .args(include.iter().map(|dir| format!("-I{}", dir.display())))
            .arg(format!("-I/usr/include/{machine}-linux-gnu"))
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(source.with_extension("o"))
            .output()
            .map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot run clang: {error}"))
                    .fix("install it: apt-get install clang libbpf-dev")
            })?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(Failure::new(
                Exit::Invalid,
                format!("it does not compile\n{}", said.trim_end()),
            )
            .at(source.display().to_string())
            .fix("correct the source; missing headers come with: apt-get install libbpf-dev"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_name_of_their_source() {
        assert_eq!(source_of("a.bpf.o"), "a.bpf.c");
        assert_eq!(source_of("a.o"), "a.bpf.c");
        assert_eq!(Path::new("a.bpf.c").with_extension("o"), Path::new("a.bpf.o"));
    }
}
