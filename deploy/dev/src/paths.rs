//! Where things are: the work tree, the build's output, the development stack's directory.

use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The work tree, where it is another one than this program was compiled in.
static WORK_TREE: OnceLock<PathBuf> = OnceLock::new();

/// Has this program work on another work tree than the one it was compiled in; only the first call counts.
pub fn use_work_tree(root: PathBuf) {
    let _ = WORK_TREE.set(root);
}

/// Root of the work tree.
pub fn workspace() -> PathBuf {
    if let Some(root) = WORK_TREE.get() {
        return root.clone();
    }
    // deploy/dev is two below the root; fixed when the crate is compiled, and a work tree that has
    // moved since is compiled again by cargo.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's target directory.
///
/// Taken from where this program itself lies (`<target>/<profile>/xtask`), so that it is right
/// however it was chosen: environment, configuration or default.
pub fn target() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find the running program's own file")?;
    let profile = profile_dir(&me).context("xtask must run from cargo's target directory")?;
    Ok(profile.parent().unwrap_or(&profile).to_owned())
}

/// Directory of the binaries built beside this one.
pub fn binaries() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find the running program's own file")?;
    profile_dir(&me).context("this program must run from cargo's target directory")
}

/// `<target>/<profile>` for a program or a test (which lies one deeper, in `deps`).
fn profile_dir(program: &Path) -> Option<PathBuf> {
    let dir = program.parent()?;
    let dir = if dir.file_name().is_some_and(|name| name == "deps") { dir.parent()? } else { dir };
    Some(dir.to_owned())
}

/// The development stack's directory: keys, configuration, logs, state. Ignored by git.
pub fn stack() -> PathBuf {
    workspace().join(".canopy")
}

/// A path as a person wants to read it: relative to the work tree where it is in it.
pub fn short(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_find_the_same_directory() {
        let expected = Some(PathBuf::from("/t/debug"));
        assert_eq!(profile_dir(Path::new("/t/debug/xtask")), expected);
        assert_eq!(profile_dir(Path::new("/t/debug/deps/e2e-0123")), expected);
    }

    #[test]
    fn the_work_tree_is_found() {
        assert!(workspace().join("Cargo.lock").is_file());
    }
}
