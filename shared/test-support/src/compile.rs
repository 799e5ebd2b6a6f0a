//! eBPF objects from C, by the flags of the product's own build.

use anyhow::{Context as _, Result, bail};
use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the work tree.
pub fn repository() -> &'static Path {
    // shared/test-support
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// Compiles one C source to an eBPF object.
///
/// # Errors
///
/// When clang is missing or refuses the source, with what it said.
pub fn compile(source: &Path, out: &Path) -> Result<()> {
    compile_with(source, out, &[])
}

/// As [`compile`], with more options for the compiler, after its own.
pub fn compile_with(source: &Path, out: &Path, options: &[&str]) -> Result<()> {
    let output = Command::new("clang")
        .args(["-target", "bpf", "-g", "-O2", "-Wall", "-Werror", "-mcpu=v3"])
        .arg("-I")
        .arg(repository().join("ebpf/include"))
        // asm/types.h, which linux/types.h includes, lies below the host's architecture.
        .arg(format!("-I/usr/include/{ARCH}-linux-gnu"))
        .args(options)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(out)
        .output()
        .context("run clang (install clang 14 or newer and libbpf-dev; `cargo xtask test` does)")?;
    if !output.status.success() {
        bail!("compile {}: {}", source.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Compiles C text to an eBPF object; the object's bytes.
pub fn compile_text(text: &str) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().context("make a directory to compile in")?;
    let (source, object): (PathBuf, PathBuf) = (dir.path().join("p.bpf.c"), dir.path().join("p.o"));
    fs::write(&source, text)?;
    compile(&source, &object)?;
    fs::read(&object).context("read the object")
}
