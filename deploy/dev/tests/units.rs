//! The systemd units, as systemd itself reads them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is the message")]

use std::{fs, path::Path, process::Command};
use xtask::paths;

/// Exposure levels by `systemd-analyze security` times ten, as `deploy/systemd/README.md` tells them.
const EXPOSURE: [(&str, u32); 6] = [
    ("loader", 27),
    ("enforcer", 49),
    ("registry", 14),
    ("policy", 14),
    ("cert-monitor", 14),
    ("host-renew", 20),
];

/// The loader with `netns.conf`.
const WITH_NETNS: u32 = 31;

fn exposed(unit: &Path, most: u32) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={most}"))
        .arg(unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    (output.status.success(), said.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn the_loader_that_enters_namespaces_exposes_no_more_than_is_recorded() {
    let from = paths::workspace().join("deploy/systemd");
    let dir = tempfile::tempdir().unwrap();
    let drop_in = dir.path().join("canopy-loader.service.d");
    fs::create_dir(&drop_in).unwrap();
    let unit = dir.path().join("canopy-loader.service");
    fs::copy(from.join("canopy-loader.service"), &unit).unwrap();
    fs::copy(from.join("netns.conf"), drop_in.join("netns.conf")).unwrap();
    let (held, last) = exposed(&unit, WITH_NETNS);
    assert!(held, "{last}");
    // It is read at all: without it there is less.
    assert!(!exposed(&unit, WITH_NETNS - 1).0, "{last}");
    let page = fs::read_to_string(from.join("README.md")).unwrap();
    let told = format!("{}.{}", WITH_NETNS / 10, WITH_NETNS % 10);
    let row = page.lines().find(|line| line.contains("netns.conf") && line.starts_with('|'));
    assert!(row.is_some_and(|row| row.contains(&told)), "{told} is not in the page");
}

#[test]
fn no_unit_exposes_more_than_is_recorded() {
    let dir = paths::workspace().join("deploy/systemd");
    let page = fs::read_to_string(dir.join("README.md")).unwrap();
    for (service, exposure) in EXPOSURE {
        let unit = dir.join(format!("canopy-{service}.service"));
        let (held, last) = exposed(&unit, exposure);
        assert!(held, "{}: {last}", unit.display());
        let told = format!("{}.{}", exposure / 10, exposure % 10);
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(service));
        assert!(row.is_some_and(|row| row.contains(&told)), "{service} {told} is not in the page");
    }
}

/// The units, named by service.
fn units() -> Vec<(String, String)> {
    let dir = paths::workspace().join("deploy/systemd");
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "service"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    found.sort();
    assert_eq!(found.len(), EXPOSURE.len());
    found
}

/// The value of a key in a section of a unit.
fn value<'a>(unit: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let (_, rest) = unit.split_once(&format!("[{section}]\n"))?;
    let section = rest.split_once("\n[").map_or(rest, |(section, _)| section);
    section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// What was wrong and is corrected comes back by itself, however long it was wrong.
#[test]
fn a_service_that_failed_often_is_started_again() {
    for (name, unit) in units() {
        if value(&unit, "Service", "Type") == Some("oneshot") {
            // Its timer starts it again.
            assert_eq!(value(&unit, "Service", "Restart"), None, "{name}");
            continue;
        }
        assert_eq!(value(&unit, "Service", "Restart"), Some("always"), "{name}");
        // In this section alone it counts: systemd.unit(5).
        assert_eq!(value(&unit, "Unit", "StartLimitIntervalSec"), Some("0"), "{name}");
        assert!(!unit.contains("StartLimitBurst"), "{name}");
        let seconds = |key: &str| -> u32 {
            let value = value(&unit, "Service", key).unwrap_or_else(|| panic!("{name}: no {key}"));
            value.strip_suffix('s').unwrap_or(value).parse().unwrap()
        };
        assert!(seconds("RestartSec") <= 2, "{name}");
        assert!((10..=60).contains(&seconds("RestartMaxDelaySec")), "{name}");
        assert!(seconds("RestartSteps") > 0, "{name}");
    }
}

/// `--check` fails for what a start does without: a repository that is away, rules with a mistake, a bus that
/// a loader's chains do not wait for.
#[test]
fn no_unit_starts_only_after_a_check() {
    for (name, unit) in units() {
        assert!(!unit.contains("--check"), "{name}");
    }
}

/// systemd reads every line, the shipped binaries' paths apart; what is newer than it is ignored.
#[test]
fn systemd_finds_no_mistake_in_the_units() {
    /// Since systemd 254.
    const NEWER: [&str; 2] = ["RestartSteps", "RestartMaxDelaySec"];
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    for (name, unit) in units() {
        // The binaries are not installed here.
        let installed = ["/usr/bin/canopy-", "/usr/bin/canopy "];
        assert!(installed.iter().any(|path| unit.contains(path)), "{name}");
        let text: String = unit
            .lines()
            .map(|line| match line.split_once("=/usr/bin/canopy") {
                Some((key, _)) => format!("{key}=/bin/true\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let file = dir.path().join(format!("{name}.service"));
        fs::write(&file, text).unwrap();
        command.arg(file);
    }
    let timer = "canopy-host-renew.timer";
    fs::copy(paths::workspace().join("deploy/systemd").join(timer), dir.path().join(timer))
        .unwrap();
    let output = command.arg(dir.path().join(timer)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about_these =
        |line: &&str| line.contains(&*dir.path().to_string_lossy()) || line.contains("canopy");
    let wrong: Vec<&str> = said
        .lines()
        .filter(about_these)
        .filter(|line| {
            !NEWER.iter().any(|key| {
                line.contains(&format!("Unknown key '{key}'"))
                    || line.contains(&format!("Unknown key name '{key}'"))
            })
        })
        .collect();
    assert!(wrong.is_empty() && output.status.success(), "{wrong:?}\n{said}");
}

/// A key that one central service reads is readable by none of the others, nor is its memory.
#[test]
fn each_central_service_has_a_user_of_its_own() {
    const CENTRAL: [&str; 3] = ["canopy-cert-monitor", "canopy-policy", "canopy-registry"];
    let dir = paths::workspace().join("deploy/systemd");
    let page = fs::read_to_string(dir.join("README.md")).unwrap();
    for (name, unit) in units() {
        let user = value(&unit, "Service", "User");
        if CENTRAL.contains(&name.as_str()) {
            assert_eq!(user, Some(name.as_str()));
            assert_eq!(value(&unit, "Service", "Group"), user, "{name}");
            assert_eq!(value(&unit, "Service", "SupplementaryGroups"), None, "{name}");
            assert_eq!(value(&unit, "Service", "StateDirectoryMode"), Some("0700"), "{name}");
            let key = format!("chown {name} /etc/canopy/tls/s-");
            assert!(page.contains(&key), "the page does not say whose key it is: {key}");
        } else {
            assert_eq!(user, None, "{name}");
        }
    }
    assert!(page.contains("for service in policy registry cert-monitor; do"));
    let security = fs::read_to_string(paths::workspace().join("docs/security.md")).unwrap();
    for command in ["keys", "audit-key"] {
        let owned = format!("canopy-policy {command} --owner canopy-policy ");
        assert!(security.contains(&owned), "{owned}");
    }
}

#[test]
fn no_unit_leaves_a_core_dump_or_has_endless_files() {
    for (name, unit) in units() {
        assert_eq!(value(&unit, "Service", "LimitCORE"), Some("0"), "{name}");
        let files: u32 =
            value(&unit, "Service", "LimitNOFILE").unwrap_or_default().parse().unwrap();
        assert!((1024..=65_536).contains(&files), "{name}: {files}");
        // A service ends by itself before the manager ends it: 18 s (shared/runtime).
        if value(&unit, "Service", "Type") != Some("oneshot") {
            assert_eq!(value(&unit, "Service", "TimeoutStopSec"), Some("20s"), "{name}");
        }
    }
}
