//! A directory of one's own on bpffs.

use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory on bpffs; removed with all in it when dropped.
#[derive(Debug)]
pub struct BpffsDir(PathBuf);

impl BpffsDir {
    /// A new one, under `/sys/fs/bpf`.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/sys/fs/bpf/canopy-test-{}-{number}", process::id()));
        fs::create_dir(&path).with_context(|| {
            format!("make {} (needs root, and bpffs: mount -t bpf bpf /sys/fs/bpf)", path.display())
        })?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for BpffsDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
