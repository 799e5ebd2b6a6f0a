//! Building: the binaries with cargo, the kernel-side programs with clang.

use crate::{paths, shell};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// The packages whose binaries make the stack.
pub const STACK_PACKAGES: [&str; 6] = [
    "canopy-cert-monitor",
    "canopy-ctl",
    "canopy-enforcer",
    "canopy-loader",
    "canopy-policy",
    "canopy-registry",
];

/// cargo, building into the directory this program was built into.
pub fn cargo(subcommand: &str) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace()).arg(subcommand);
    if subcommand != "fmt" && subcommand != "metadata" {
        command.arg("--target-dir").arg(paths::target()?);
    }
    Ok(command)
}

/// Builds every binary of the stack.
pub fn binaries() -> Result<()> {
    let mut command = cargo("build")?;
    command.arg("--bins");
    for package in STACK_PACKAGES {
        command.args(["--package", package]);
    }
    shell::run(&mut command)
}

/// Where compiled packages lie, ready for `canopy package build`.
pub fn ebpf_dir() -> Result<PathBuf> {
    Ok(paths::target()?.join("ebpf"))
}

/// Compiles every package under `ebpf/packages` that has changed, and gives the directories.
pub fn packages() -> Result<Vec<PathBuf>> {
    let root = paths::workspace();
    let mut built = Vec::new();
    for source in sorted(&root.join("ebpf/packages"))? {
        if source.join("package.yaml").is_file() {
            let to = ebpf_dir()?.join(source.file_name().context("a directory has a name")?);
            package(&source, &to).with_context(|| format!("package {}", paths::short(&source)))?;
            built.push(to);
        }
    }
    if built.is_empty() {
        bail!("there is no package in ebpf/packages");
    }
    Ok(built)
}

/// The directories of the packages that were compiled before.
pub fn built_packages() -> Result<Vec<PathBuf>> {
    let dirs = sorted(&ebpf_dir()?)?;
    Ok(dirs.into_iter().filter(|dir| dir.join("package.yaml").is_file()).collect())
}

/// Compiles one package directory: objects beside copies of everything else in it.
fn package(source: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let headers = newest(&paths::workspace().join("ebpf/include"))?;
    let license = to.join("LICENSE");
    let mut wanted = vec![license.clone()];
    for file in sorted(source)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".bpf.c") {
            let object = to.join(format!("{stem}.bpf.o"));
            wanted.push(object.clone());
            let newest_input = headers.max(modified(&file)?);
            if !object.exists() || modified(&object)? <= newest_input {
                object_file(&file, &object)?;
            }
        } else if file.is_file() {
            fs::copy(&file, to.join(&name))?;
            wanted.push(to.join(&name));
        }
    }
    if !license.exists() {
        fs::copy(paths::workspace().join("LICENSE"), license)?;
    }
    // Of a source that is no longer there.
    for file in sorted(to)?.into_iter().filter(|file| !wanted.contains(file)) {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Compiles one program. The paths of this machine stay out of the object, so that the same
/// source gives the same bytes everywhere.
fn object_file(source: &Path, object: &Path) -> Result<()> {
    let root = paths::workspace();
    let relative = source.strip_prefix(&root).unwrap_or(source);
    let mut command = shell::command("clang");
    command
        .current_dir(&root)
        .args(["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"])
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .args(["-I", "ebpf/include"])
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg("-c")
        .arg(relative)
        .arg("-o")
        .arg(object);
    shell::run(&mut command)
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    Ok(entries)
}

fn modified(file: &Path) -> Result<SystemTime> {
    file.metadata()
        .and_then(|meta| meta.modified())
        .with_context(|| format!("cannot read {}", file.display()))
}

fn newest(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for path in sorted(dir)? {
        let time = if path.is_dir() { self::newest(&path)? } else { modified(&path)? };
        newest = newest.max(time);
    }
    Ok(newest)
}

/// A binary built beside this program.
pub fn binary(name: impl AsRef<OsStr>) -> Result<PathBuf> {
    let file = paths::binaries()?.join(name.as_ref());
    if !file.is_file() {
        bail!("{} has not been built: run `cargo xtask test` or `cargo xtask up`", file.display());
    }
    Ok(file)
}
