//! `cargo xtask test`: builds once, then runs each tier's test programs and counts.

use crate::{
    compile,
    progress::{heading, paint},
    shell, tools,
    tools::Need,
};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, IsTerminal as _, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A group of tests by what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// No root.
    Unit,
    /// A real nats-server on a free port.
    Bus,
    /// Root: namespaces, programs in the kernel.
    Kernel,
    /// Root and everything: the real binaries, seen from outside.
    E2e,
}

impl Tier {
    fn of(package: &str) -> Self {
        match package {
            "canopy-bus" => Self::Bus,
            "canopy-kernel-aya"
            | "canopy-kernel-tests"
            | "canopy-test-support"
            | "canopy-bench" => Self::Kernel,
            "canopy-e2e" => Self::E2e,
            _ => Self::Unit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Bus => "bus",
            Self::Kernel => "kernel",
            Self::E2e => "e2e",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::E2e)
    }

    /// A test program that takes longer hangs.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Unit | Self::Bus => 300,
            Self::Kernel | Self::E2e => 900,
        })
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A test program cargo has built.
struct TestProgram {
    package: String,
    target: String,
    directory: PathBuf,
    executable: PathBuf,
}

/// Runs the tiers (all when none is named); `full` asks the tests for their long variants.
pub fn run(tiers: &[Tier], full: bool) -> Result<()> {
    let tiers: Vec<Tier> = Tier::value_variants()
        .iter()
        .copied()
        .filter(|tier| tiers.is_empty() || tiers.contains(tier))
        .collect();
    let begin = Instant::now();
    heading("Preparing");
    tools::ensure(&[Need::Compile, Need::Network, Need::Tests])?;
    if tiers.iter().any(|tier| tier.needs_root()) {
        shell::can_be_root()?;
        tools::mount_filesystems()?;
    }
    tools::nats_server()?;

    heading("Building");
    let mut seconds = BTreeMap::new();
    let build = Instant::now();
    compile::packages()?;
    let programs = build_tests()?;
    seconds.insert("build", build.elapsed());

    let mut total = Count::default();
    let mut failures = Vec::new();
    for tier in &tiers {
        heading(&format!("{} tests", tier.name()));
        let tier_begin = Instant::now();
        for program in programs.iter().filter(|program| Tier::of(&program.package) == *tier) {
            let count = run_program(program, *tier, full)?;
            if count.failed > 0 {
                failures.push(format!("{} ({})", program.package, program.target));
            }
            total += count;
        }
        if *tier == Tier::Unit {
            let count = run_doc_tests()?;
            if count.failed > 0 {
                failures.push("examples in documentation".to_owned());
            }
            total += count;
        }
        seconds.insert(tier.name(), tier_begin.elapsed());
    }

    heading("Seconds");
    for name in ["build", "unit", "bus", "kernel", "e2e"] {
        if let Some(took) = seconds.get(name) {
            println!("  {name:<8} {:7.1}", took.as_secs_f64());
        }
    }
    println!("  {:<8} {:7.1}", "all", begin.elapsed().as_secs_f64());
    for failure in &failures {
        println!("{} {failure}", paint("31", "FAILED"));
    }
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 || !failures.is_empty() {
        bail!("{} of the tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// One build for everything: the binaries the tests run, and the tests.
fn build_tests() -> Result<Vec<TestProgram>> {
    let names = package_names()?;
    let mut command = compile::cargo("build")?;
    command
        .args(["--workspace", "--bins", "--tests", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let mut child =
        command.spawn().with_context(|| format!("cannot run `{}`", shell::show(&command)))?;
    let stdout = child.stdout.take().context("cargo's output is a pipe")?;
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(&line?) else { continue };
        let (Some(id), Some(target), Some(profile), Some(executable), Some(manifest)) = (
            message.package_id,
            message.target,
            message.profile,
            message.executable,
            message.manifest_path,
        ) else {
            continue;
        };
        if message.reason == "compiler-artifact" && profile.test {
            programs.push(TestProgram {
                package: names.get(&id).cloned().unwrap_or(id),
                target: match target.kind.first().map(String::as_str) {
                    Some("lib") => "unit tests".to_owned(),
                    Some("bin") => format!("unit tests of {}", target.name),
                    _ => target.name,
                },
                directory: manifest.parent().map(PathBuf::from).unwrap_or_default(),
                executable,
            });
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the build failed");
    }
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

/// Package names by cargo's id.
fn package_names() -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        id: String,
        name: String,
    }
    let text =
        shell::output(compile::cargo("metadata")?.args(["--format-version=1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's metadata")?;
    Ok(metadata.packages.into_iter().map(|package| (package.id, package.name)).collect())
}

fn run_program(program: &TestProgram, tier: Tier, full: bool) -> Result<Count> {
    let name = format!("{} ({})", program.package, program.target);
    let limit = tier.limit().as_secs();
    let mut command = if tier.needs_root() { shell::root("env") } else { shell::command("env") };
    command.arg(format!("PATH={}", path_with_tools()?));
    command.arg(format!("CARGO_MANIFEST_DIR={}", program.directory.display()));
    // Where a test panicked; not how each error on the way was made.
    command.args(["RUST_BACKTRACE=1", "RUST_LIB_BACKTRACE=0"]);
    if full {
        command.arg("CANOPY_TEST_FULL=1");
    }
    command
        .args(["timeout", "--kill-after=10", &limit.to_string()])
        .arg(&program.executable)
        .arg("--show-output")
        .current_dir(&program.directory);
    run_counted(&name, &mut command)
}

fn run_doc_tests() -> Result<Count> {
    let mut command = compile::cargo("test")?;
    command.args(["--workspace", "--doc", "--quiet"]);
    run_counted("examples in documentation", &mut command)
}

/// Runs a test program and counts from its own closing lines. Its output is shown only where
/// something failed; a program that dies counts as one failure.
fn run_counted(name: &str, command: &mut Command) -> Result<Count> {
    // On a terminal the line stands while the program runs; elsewhere it comes whole, at the end.
    if std::io::stdout().is_terminal() {
        print!("  {name:<58} ");
        let _ = std::io::stdout().flush();
    }
    let begin = Instant::now();
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child =
        command.spawn().with_context(|| format!("cannot run `{}`", shell::show(command)))?;
    // The parent's ends of the pipe are in the command; without this the reading never ends.
    *command = Command::new("true");
    let mut output = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        output.push(String::from_utf8_lossy(&line?).into_owned());
    }
    let status = child.wait()?;
    let mut count = count(output.iter().map(String::as_str));
    if !status.success() && count.failed == 0 {
        count.failed = 1;
    }
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[2K");
    }
    let took = begin.elapsed().as_secs_f64();
    if count.failed > 0 {
        println!("  {name:<58} {} ({status}) {took:6.1} s", paint("31", "FAILED"));
        for line in &output {
            println!("    {line}");
        }
    } else if count != Count::default() {
        let skipped =
            if count.skipped > 0 { format!(", {} skipped", count.skipped) } else { String::new() };
        println!("  {name:<58} {:4} passed{skipped} {took:6.1} s", count.passed);
        for line in output.iter().filter(|line| line.starts_with(SKIP)) {
            println!("      {line}");
        }
    }
    Ok(count)
}

/// A test that cannot run on this kernel says so on a line that starts like this, and passes.
const SKIP: &str = "SKIPPED ";

/// Reads libtest's closing lines: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn count<'a>(lines: impl Iterator<Item = &'a str>) -> Count {
    let mut total = Count::default();
    for line in lines {
        if line.starts_with(SKIP) {
            total.skipped += 1;
            continue;
        }
        let Some(rest) = line.strip_prefix("test result: ") else { continue };
        let number = |word: &str| {
            rest.split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|number| number.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        total.passed += number("passed");
        total.failed += number("failed");
    }
    total.passed = total.passed.saturating_sub(total.skipped);
    total
}

fn path_with_tools() -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(format!("{}:{path}:/usr/local/sbin:/usr/sbin:/sbin", tools::tools_dir()?.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let output = "running 2 tests\n\
            test a ... ok\n\
            SKIPPED needs_lsm: no BPF LSM on this kernel\n\
            test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(count(output.lines()), Count { passed: 5, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_program_that_dies_counts_as_a_failure() {
        let mut command = shell::command("sh");
        command.args(["-c", "kill -9 $$"]);
        assert_eq!(run_counted("dies", &mut command).unwrap().failed, 1);
    }
}
