//! What the service has stored, as files: `canopy-policy backup` and `restore`.

use crate::{Config, audit, auth};
use anyhow::{Context as _, bail};
use canopy_bus::{Bus, data};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What is stored, whether or not it is there.
fn streams() -> Vec<String> {
    [auth::streams(), audit::streams()].concat()
}

fn described(dir: &Path, stream: &str) -> PathBuf {
    dir.join(format!("{stream}.json"))
}

fn content(dir: &Path, stream: &str) -> PathBuf {
    dir.join(format!("{stream}.snapshot"))
}

/// Writes everything stored into a new directory; what was written, a line each.
pub(crate) async fn backup(bus: &Bus, dir: &Path) -> anyhow::Result<String> {
    if dir.exists() {
        bail!("{} exists; choose another directory", dir.display());
    }
    let mut there = Vec::new();
    for stream in streams() {
        if data::has_stream(bus, &stream).await? {
            there.push(stream);
        }
    }
    if there.is_empty() {
        bail!("nothing is stored there: none of {}", streams().join(", "));
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let mut written = String::new();
    for stream in there {
        let path = content(dir, &stream);
        let mut file = new_file(&path)?;
        let about = data::snapshot(bus, &stream, &mut file).await?;
        file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
        // Only what is whole has a description.
        let path = described(dir, &stream);
        let mut file = new_file(&path)?;
        let text = serde_json::to_string_pretty(&about)? + "\n";
        let write = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        write.with_context(|| format!("cannot write {}", path.display()))?;
        written = format!("{written}{stream}\n");
    }
    Ok(written)
}

/// Puts everything of a backup into a store that has none of it; what was restored, a line each.
pub(crate) async fn restore(bus: &Bus, dir: &Path, config: &Config) -> anyhow::Result<String> {
    let kept: Vec<String> =
        streams().into_iter().filter(|stream| described(dir, stream).exists()).collect();
    if kept.is_empty() {
        bail!("{} has no backup of canopy-policy", dir.display());
    }
    let mut all = Vec::new();
    for stream in kept {
        if data::has_stream(bus, &stream).await? {
            bail!(
                "{stream} exists at {}: stop every policy service, and restore into a store that has none \
                 of it; nothing was changed",
                config.bus.url
            );
        }
        let path = described(dir, &stream);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let about: serde_json::Value = serde_json::from_slice(&text)
            .with_context(|| format!("not as backup writes it: {}", path.display()))?;
        let path = content(dir, &stream);
        let file =
            fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        all.push((stream, about, file));
    }
    let mut restored: Vec<String> = Vec::new();
    for (stream, about, mut file) in all {
        if let Err(error) = data::restore(bus, &stream, &about, &mut file).await {
            // There was none of it before; a part would be in the way of the next attempt.
            let mut left: Vec<String> = Vec::new();
            for stream in restored {
                if data::remove_stream(bus, &stream).await.is_err() {
                    left.push(stream);
                }
            }
            let left = match left.as_slice() {
                [] => "nothing is left of it".to_owned(),
                left => format!("remove {} before the next attempt", left.join(", ")),
            };
            bail!("{stream} is not restored: {error}; {left}");
        }
        restored.push(stream);
    }
    restored.push(String::new());
    Ok(restored.join("\n"))
}

fn new_file(path: &Path) -> anyhow::Result<fs::File> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}
