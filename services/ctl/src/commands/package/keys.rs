//! `package keygen`, `package sign` and `package comment`.

use super::{open, refused};
use crate::{
    failure::{Exit, Failure},
    files,
    output::Screen,
};
use canopy_api::Digest;
use canopy_package::{SecretKey, sign};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Writes a new key pair; never over another.
pub fn generate(directory: &Path, name: &str, screen: &mut Screen) -> Result<Exit, Failure> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Failure::new(Exit::Invalid, format!("\"{name}\" is not a file name"))
            .at("--name")
            .fix("a name without '/', such as canopy"));
    }
    files::make_directory(directory)?;
    let (secret, public) =
        (directory.join(format!("{name}.key")), directory.join(format!("{name}.pub")));
    for path in [&secret, &public] {
        if path.exists() {
            return Err(exists(path));
        }
    }
    let place = directory.display().to_string();
    let make = || {
        let key = SecretKey::generate()?;
        Ok((key.to_file()?, key.public()?))
    };
    let (text, key) = make().map_err(|error| refused(&place, &error))?;
    let new = |path: &Path, text: &str, mode| {
        files::write_new(path, text.as_bytes(), mode).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(path),
            _ => Failure::io("write", path, &error),
        })
    };
    new(&secret, &text, files::SECRET)?;
    new(&public, &key.to_file(), files::PUBLIC)?;
    screen.print(&format!("{}\n{}\n", secret.display(), public.display()))?;
    screen.note(&format!("key {}; the public key, for configurations: {key}", key.id()));
    Ok(Exit::Done)
}

fn exists(path: &Path) -> Failure {
    Failure::new(Exit::Conflict, format!("{} is there already", path.display()))
        .fix("a key is never overwritten: choose another directory or --name")
}

/// A secret key file that nobody else can read.
pub(super) fn secret_key(path: &Path) -> Result<SecretKey, Failure> {
    let text = files::read_text(path, 1 << 16)?;
    let mode =
        fs::metadata(path).map_err(|error| Failure::io("read", path, &error))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::new(
            Exit::Denied,
            format!("the secret key can be read by others (mode {:04o})", mode & 0o7777),
        )
        .at(path.display().to_string())
        .fix(format!("chmod 600 {}", path.display())));
    }
    SecretKey::from_file(&text).map_err(|error| refused(&path.display().to_string(), &error))
}

/// Writes a signature beside each file.
pub fn sign(paths: &[PathBuf], key: &Path, screen: &mut Screen) -> Result<Exit, Failure> {
    let key = secret_key(key)?;
    for path in paths {
        let (bytes, package) = open(path)?;
        let signature = key
            .sign_package(&bytes, &package.manifest.name, &package.manifest.version)
            .map_err(|error| refused(&path.display().to_string(), &error))?;
        let beside = files::beside(path, ".minisig");
        files::write_atomic(&beside, signature.as_bytes(), files::PUBLIC)?;
        screen.print(&format!("{}\n", beside.display()))?;
    }
    Ok(Exit::Done)
}

/// What a signature of the file must say.
pub fn comment(path: &Path, screen: &mut Screen) -> Result<Exit, Failure> {
    let (bytes, package) = open(path)?;
    let manifest = &package.manifest;
    let comment = sign::comment(&manifest.name, &manifest.version, &Digest::of(&bytes));
    screen.print(&(comment + "\n"))?;
    Ok(Exit::Done)
}
