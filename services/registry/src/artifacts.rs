//! Verified package files in memory, the least recently used given up first.

use bytes::Bytes;
use canopy_api::Digest;
use canopy_package::{Manifest, describe::DescribedMap};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A package file that was verified, and what it says of itself.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The file.
    pub bytes: Bytes,
    /// Its manifest.
    pub manifest: Manifest,
    /// The maps of its objects.
    pub maps: Vec<DescribedMap>,
    /// Its README.
    pub readme: String,
    /// Its signature file; `None` in an unsigned repository.
    pub signature: Option<String>,
    /// Id of the key that signed it.
    pub signed_by: Option<String>,
    /// When it was verified, seconds since the epoch.
    pub verified: u64,
}

/// The files kept.
#[derive(Debug)]
pub struct Artifacts {
    limit: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: BTreeMap<Digest, (u64, Arc<Artifact>)>,
    bytes: u64,
    clock: u64,
}

impl Artifacts {
    /// Keeps at most `limit` bytes of package files; the one just used stays in any case.
    pub fn new(limit: u64) -> Self {
        Self { limit, kept: Mutex::default() }
    }

    /// The file with that digest.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Artifact>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        kept.files.get_mut(digest).map(|(used, artifact)| {
            *used = now;
            artifact.clone()
        })
    }

    /// Keeps a file.
    pub fn put(&self, digest: Digest, artifact: Arc<Artifact>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        kept.bytes += artifact.bytes.len() as u64;
        if let Some((_, old)) = kept.files.insert(digest, (now, artifact)) {
            kept.bytes -= old.bytes.len() as u64;
        }
        while kept.bytes > self.limit && kept.files.len() > 1 {
            let oldest = kept.files.iter().min_by_key(|(_, (used, _))| *used);
            let Some(digest) = oldest.map(|(digest, _)| digest.clone()) else { break };
            if let Some((_, old)) = kept.files.remove(&digest) {
                kept.bytes -= old.bytes.len() as u64;
            }
        }
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::document::Format;

    #[test]
    fn the_least_recently_used_goes_first() {
        let manifest = "{ name: a, version: 1.0.0, description: a, license: MIT, programs: [{ name: a, object: a.o, function: a, hooks: [xdp] }] }";
        let artifact = Arc::new(Artifact {
            bytes: Bytes::from_static(&[0; 10]),
            manifest: Manifest::read(manifest, Format::Yaml).unwrap(),
            maps: Vec::new(),
            readme: String::new(),
            signature: None,
            signed_by: None,
            verified: 0,
        });
        let digest = |n: u8| Digest::of(&[n]);
        let artifacts = Artifacts::new(25);
        artifacts.put(digest(1), artifact.clone());
        artifacts.put(digest(2), artifact.clone());
        assert!(artifacts.get(&digest(1)).is_some());
        artifacts.put(digest(3), artifact.clone());
        assert!(artifacts.get(&digest(2)).is_none());
        assert!(artifacts.get(&digest(1)).is_some() && artifacts.get(&digest(3)).is_some());
        assert_eq!(artifacts.bytes(), 20);
        artifacts.put(digest(3), artifact);
        assert_eq!(artifacts.bytes(), 20, "the same file twice takes its room once");
    }
}
