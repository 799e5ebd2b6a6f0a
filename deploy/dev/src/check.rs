//! `cargo xtask check`: what a change has to pass besides the tests.

use crate::{compile, docs, paths, progress::step, rules, shell, tools, tools::Need};
use anyhow::{Result, bail};

/// Format of Rust and C, lints, dependency rules, generated documents.
pub fn run() -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Check])?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, work: &dyn Fn() -> Result<()>| {
        if let Err(error) = step(name, work) {
            println!("{error:#}");
            failed.push(name);
        }
    };
    check("format", &|| shell::quiet(compile::cargo("fmt")?.args(["--all", "--check"])));
    check("dependency rules", &|| {
        let breaches = rules::breaches()?;
        if !breaches.is_empty() {
            bail!("{}", breaches.join("\n"));
        }
        Ok(())
    });
    check("C format", &c_format);
    check("lints", &|| {
        shell::run(compile::cargo("clippy")?.args([
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    });
    check("generated documents", &|| {
        compile::binaries()?;
        docs::check()
    });
    if !failed.is_empty() {
        bail!("not passed: {}", failed.join(", "));
    }
    Ok(())
}

fn c_format() -> Result<()> {
    let sources = shell::output(shell::command("git").current_dir(paths::workspace()).args([
        "ls-files",
        "*.c",
        "*.h",
        // Their @NAME@ is not C.
        ":!services/ctl/template",
    ]))?;
    let mut command = shell::command("clang-format");
    command
        .current_dir(paths::workspace())
        .args(["--style=file:ebpf/.clang-format", "--dry-run", "--Werror"])
        .args(sources.lines());
    shell::quiet(&mut command)
}
