//! What the command line says before, or without, a connection.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

fn canopy(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_canopy"))
        .args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME")
        .env_remove("CANOPY_CONFIG")
        .output()
        .unwrap()
}

#[track_caller]
fn fails(exit: i32, args: &[&str], dir: &Path) -> String {
    let output = canopy(args, dir);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
    said
}

const DOCUMENT: &str = "\
chains:
  - interface: eth0
    hook: xdp
    programs: [{ name: a, package: firewall@^0.1 }]
";

/// A context whose bus is a port where nobody listens.
fn context(dir: &Path) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let key = rcgen::KeyPair::generate().unwrap();
    let uri = rcgen::SanType::URI("spiffe://canopy/u-alice".try_into().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![uri];
    fs::write(dir.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    canopy_test_support::nats::private_file(&dir.join("key.pem"), &key.serialize_pem()).unwrap();
    let text = format!(
        "current: dev\ncontexts:\n  - {{ name: dev, url: \"tls://127.0.0.1:{port}\", ca: cert.pem, \
         cert: cert.pem, key: key.pem, principal: u-alice, host: web1 }}\n"
    );
    fs::write(dir.join("config.yaml"), text).unwrap();
    fs::write(dir.join("doc.yaml"), DOCUMENT).unwrap();
}

#[test]
fn a_wrong_document_is_told_before_anything_is_connected() {
    let dir = TempDir::new().unwrap();
    let bad = DOCUMENT.replace("xdp", "xpd").replace("programs", "progams");
    fs::write(dir.path().join("bad.yaml"), bad).unwrap();
    for command in ["apply", "diff", "delete"] {
        let said = fails(2, &[command, "-f", "bad.yaml"], dir.path());
        assert!(said.contains("at: bad.yaml: chains[0]"), "{said}");
        assert!(said.matches("error: ").count() >= 2, "{said}");
    }
    let said = fails(4, &["apply", "-f", "nowhere.yaml"], dir.path());
    assert!(said.contains("cannot read nowhere.yaml"), "{said}");
    let said = fails(2, &["apply", "-f", "."], dir.path());
    assert!(said.contains("is a directory"), "{said}");
}

#[test]
fn a_document_may_come_from_standard_input() {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_canopy"))
        .args(["apply", "-f", "-"])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("CANOPY_CONFIG")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"chains: 7\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("at: (standard input): chains"), "{said}");
}

#[test]
fn without_a_context_the_way_out_is_shown() {
    let dir = TempDir::new().unwrap();
    let said = fails(2, &["get", "hosts"], dir.path());
    assert!(said.contains("error: no context") && said.contains("--context-file"), "{said}");
    let said = fails(4, &["get", "hosts", "--context-file", "nowhere.yaml"], dir.path());
    assert!(said.contains("nowhere.yaml"), "{said}");
}

#[test]
fn a_bus_that_is_away_is_unavailable_not_a_crash() {
    let dir = TempDir::new().unwrap();
    context(dir.path());
    for command in [&["get", "chains"][..], &["apply", "-f", "doc.yaml"]] {
        let args = [command, &["--context-file", "config.yaml", "--timeout", "300ms"]].concat();
        let said = fails(7, &args, dir.path());
        assert!(said.starts_with("error: no bus at tls://127.0.0.1:"), "{said}");
        assert!(said.contains("\n  at: context dev of config.yaml\n  fix: "), "{said}");
    }
    // A key that others may read is not even tried.
    let loose = fs::Permissions::from_mode(0o644);
    fs::set_permissions(dir.path().join("key.pem"), loose).unwrap();
    let said = fails(2, &["get", "chains", "--context-file", "config.yaml"], dir.path());
    assert!(said.contains("key.pem: others may use it (mode 0644)"), "{said}");
    assert!(said.contains("fix: chmod 600 "), "{said}");
    let output =
        canopy(&["doctor", "--context-file", "config.yaml", "--timeout", "300ms"], dir.path());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("FAILED   connection"), "{said}");
    assert!(said.contains("ok       certificate"), "{said}");
}

#[test]
fn contexts_are_listed_chosen_and_shown() {
    let dir = TempDir::new().unwrap();
    context(dir.path());
    let file = ["--context-file", "config.yaml"];
    let run = |args: &[&str]| canopy(&[args, &file].concat(), dir.path());
    let listed = String::from_utf8(run(&["config", "get-contexts"]).stdout).unwrap();
    assert!(listed.contains("*        dev"), "{listed}");
    assert!(run(&["config", "use", "dev"]).status.success());
    assert_eq!(run(&["config", "use", "prod"]).status.code(), Some(4));
    let shown = run(&["config", "view", "-o", "json", "--principal", "u-bob"]).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!((&shown["context"], &shown["principal"]), (&"dev".into(), &"u-bob".into()));
}

#[test]
fn completion_scripts_are_written_for_each_shell() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = canopy(&["completion", shell], dir.path());
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("canopy __complete"), "{shell}");
    }
    fails(2, &["completion", "tcsh"], dir.path());
}

/// What the shells themselves make of the scripts.
#[test]
fn bash_and_fish_complete_words() {
    let dir = TempDir::new().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_canopy")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    fs::write(dir.path().join("chain.yaml"), "").unwrap();
    let complete = |shell: &str, line: &str| -> Option<Vec<String>> {
        let script = match shell {
            "bash" => format!(
                "source <(canopy completion bash); COMP_WORDS=({line}); \
                 COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _canopy; printf '%s\\n' \"${{COMPREPLY[@]}}\""
            ),
            _ => format!(
                "canopy completion fish | source; complete --do-complete '{}'",
                line.replace("''", "")
            ),
        };
        let arguments: &[&str] =
            if shell == "bash" { &["--norc", "-c"] } else { &["--no-config", "-c"] };
        let mut command = Command::new(shell);
        command.args(arguments).arg(script).current_dir(dir.path());
        command.env("PATH", &path).env("HOME", dir.path()).env_remove("CANOPY_CONFIG");
        let output = command.output().ok()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{shell}: {line}: {said}");
        let found = String::from_utf8(output.stdout).unwrap();
        Some(found.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    };
    for shell in ["bash", "fish"] {
        if complete(shell, "canopy ver").is_none() {
            assert_eq!(shell, "fish", "bash is everywhere");
            println!("SKIPPED bash_and_fish_complete_words: fish is not installed");
            continue;
        }
        let has = |line: &str, expected: &[&str]| {
            let found = complete(shell, line).unwrap();
            assert_eq!(found, expected, "{shell}: {line}");
        };
        has("canopy ver", &["version"]);
        has("canopy get chain", &["chains"]);
        has("canopy get hosts -o ''", &["json", "name", "table", "wide", "yaml"]);
        has("canopy completion ''", &["bash", "fish", "zsh"]);
        has("canopy map list eth0 x", &["xdp"]);
    }
    // Where nothing is known, files are.
    if let Some(found) = complete("fish", "canopy apply -f cha") {
        assert_eq!(found, ["chain.yaml"]);
    }
}

#[test]
fn nothing_is_coloured_where_there_is_no_terminal() {
    let dir = TempDir::new().unwrap();
    context(dir.path());
    for args in [&["config", "view"][..], &["doctor", "--local"], &["get", "hosts"], &["nonsense"]]
    {
        let output = canopy(args, dir.path());
        let all = [output.stdout, output.stderr].concat();
        assert!(!all.contains(&0x1b), "{args:?}");
    }
}

#[test]
fn schemas_and_reference_are_written() {
    let dir = TempDir::new().unwrap();
    for schema in ["context-schema", "package-schema", "index-schema", "desired-schema"] {
        let output = canopy(&["generate", schema], dir.path());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["type"], "object", "{schema}");
    }
    let page =
        String::from_utf8(canopy(&["generate", "cli-reference"], dir.path()).stdout).unwrap();
    assert!(page.contains("## `canopy apply`"));
}
