//! `canopy package` as a person uses it, in directories of its own, without a bus.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_package::index::split;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};
use tempfile::TempDir;

fn canopy(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_canopy"))
        .args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("CANOPY_CONFIG")
        .output()
        .unwrap()
}

/// Standard output of a command that has to work.
#[track_caller]
fn ok(args: &[&str], dir: &Path) -> String {
    let output = canopy(args, dir);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that has to end with that exit code.
#[track_caller]
fn fails(exit: i32, args: &[&str], dir: &Path) -> String {
    let output = canopy(args, dir);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
    assert!(said.starts_with("error: "), "{args:?}: {said}");
    said
}

/// A package directory from the template, compiled once for all tests.
static TEMPLATE: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    ok(&["package", "init", "demo"], dir.path());
    ok(&["package", "build", "demo", "--compile"], dir.path());
    dir
});

/// A working directory: `demo/` compiled, `keys/`, and `demo.cpkg`.
fn workshop() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("demo")).unwrap();
    for entry in fs::read_dir(TEMPLATE.path().join("demo")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join("demo").join(entry.file_name())).unwrap();
    }
    ok(&["package", "keygen", "-o", "keys"], dir.path());
    ok(&["package", "build", "demo", "-o", "demo.cpkg"], dir.path());
    dir
}

/// A change to a text file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

const PUBLISH: [&str; 6] =
    ["package", "publish", "--repository", "repo", "--key", "keys/canopy.key"];

fn publish(file: &str) -> Vec<&str> {
    PUBLISH.into_iter().chain([file]).collect()
}

fn index(dir: &Path) -> serde_json::Value {
    let file = fs::read(dir.join("repo/index.signed")).unwrap();
    serde_json::from_slice(split(&file).unwrap().0).unwrap()
}

/// Every file of a directory with its content.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                all.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn the_template_of_every_hook_compiles_and_passes_check() {
    let dir = TempDir::new().unwrap();
    for hook in ["xdp", "tc-ingress", "tc-egress"] {
        let name = format!("my-{hook}");
        ok(&["package", "init", &name, "--hook", hook], dir.path());
        let before = fails(2, &["package", "check", &name], dir.path());
        assert!(before.contains(&format!("fix: compile {name}.bpf.c")), "{before}");
        let file = ok(&["package", "build", &name, "--compile"], dir.path());
        assert_eq!(file, format!("{name}-0.1.0.cpkg\n"));
        let said = ok(&["package", "check", &name], dir.path());
        assert_eq!(
            said,
            format!("{name} 0.1.0: no problems (1 programs, 1 settings, 2 metrics)\n")
        );
        assert_eq!(ok(&["package", "check", file.trim()], dir.path()), said);
    }
    fails(5, &["package", "init", "my-xdp"], dir.path());
}

#[test]
fn the_same_directory_makes_the_same_bytes() {
    let dir = workshop();
    ok(&["package", "build", "demo", "-o", "again.cpkg"], dir.path());
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("demo.cpkg"), read("again.cpkg"));
}

#[test]
fn check_tells_every_mistake_at_once() {
    let dir = workshop();
    let manifest = dir.path().join("demo/package.yaml");
    edit(&manifest, "function: demo", "function: dmeo");
    edit(&manifest, "bind: { global: port }", "bind: { global: prot }");
    edit(
        &manifest,
        "map: counters\n    select: { slot: 1 }",
        "map: conuters\n    select: { slot: 1 }",
    );
    let said = fails(2, &["package", "check", "demo"], dir.path());
    assert_eq!(said.matches("error: ").count(), 3, "{said}");
    for place in ["programs[0].function", "config[0].bind.global", "metrics[1].map"] {
        assert!(said.contains(&format!("at: demo/package.yaml: {place}")), "{said}");
    }
    let said = fails(2, &["package", "build", "demo", "-o", "no.cpkg"], dir.path());
    assert_eq!(said.matches("error: ").count(), 3, "{said}");
    assert!(!dir.path().join("no.cpkg").exists());

    edit(&manifest, "license:", "licence:");
    let said = fails(2, &["package", "check", "demo"], dir.path());
    assert!(said.contains("licence") && said.contains("license"), "{said}");
}

#[test]
fn a_source_that_does_not_compile_shows_the_compiler_s_words() {
    let dir = workshop();
    edit(&dir.path().join("demo/demo.bpf.c"), "return XDP_DROP;", "return XDP_DORP;");
    let said = fails(2, &["package", "build", "demo", "--compile"], dir.path());
    assert!(said.contains("undeclared identifier 'XDP_DORP'"), "{said}");
    assert!(said.contains("at: demo/demo.bpf.c"), "{said}");
}

#[test]
fn a_key_is_secret_and_never_overwritten() {
    let dir = workshop();
    let key = dir.path().join("keys/canopy.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let before = snapshot(&dir.path().join("keys"));
    fails(5, &["package", "keygen", "-o", "keys"], dir.path());
    assert_eq!(snapshot(&dir.path().join("keys")), before);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let said = fails(6, &["package", "sign", "demo.cpkg", "--key", "keys/canopy.key"], dir.path());
    assert!(said.contains("fix: chmod 600 keys/canopy.key"), "{said}");
    assert!(!dir.path().join("demo.cpkg.minisig").exists());
}

#[test]
fn signatures_are_checked_by_key_and_content() {
    let dir = workshop();
    let check = ["package", "check", "demo.cpkg", "--key", "keys/canopy.pub"];
    assert!(fails(6, &check, dir.path()).contains("is not signed"));
    ok(&["package", "sign", "demo.cpkg", "--key", "keys/canopy.key"], dir.path());
    assert!(ok(&check, dir.path()).contains("signed by "));

    let comment = ok(&["package", "comment", "demo.cpkg"], dir.path());
    let signature = fs::read_to_string(dir.path().join("demo.cpkg.minisig")).unwrap();
    assert!(signature.contains(&format!("trusted comment: {comment}")), "{signature}");

    ok(&["package", "keygen", "-o", "other"], dir.path());
    let said =
        fails(6, &["package", "check", "demo.cpkg", "--key", "other/canopy.pub"], dir.path());
    assert!(said.contains("not trusted"), "{said}");

    // Another version's signature, put beside this file.
    edit(&dir.path().join("demo/package.yaml"), "version: 0.1.0", "version: 0.2.0");
    ok(&["package", "build", "demo", "-o", "next.cpkg"], dir.path());
    fs::copy(dir.path().join("demo.cpkg.minisig"), dir.path().join("next.cpkg.minisig")).unwrap();
    fails(6, &["package", "check", "next.cpkg", "--key", "keys/canopy.pub"], dir.path());
    fails(6, &publish("next.cpkg"), dir.path());
    assert!(!dir.path().join("repo/index.signed").exists());
}

#[test]
fn broken_packages_are_refused_and_the_repository_stays() {
    let dir = workshop();
    ok(&publish("demo.cpkg"), dir.path());
    let before = snapshot(&dir.path().join("repo"));
    let good = fs::read(dir.path().join("demo.cpkg")).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("empty", Vec::new(), "damaged"),
        ("garbage", b"not a package at all".to_vec(), "damaged"),
        ("truncated", good[..good.len() / 2].to_vec(), "damaged"),
        ("flipped", flipped, "damaged"),
        ("oversized", vec![0; (16 << 20) + 1], "larger than the limit"),
    ];
    for (name, bytes, why) in cases {
        fs::write(dir.path().join(name), bytes).unwrap();
        for args in [
            publish(name),
            vec!["package", "check", name],
            vec!["package", "sign", name, "--key", "keys/canopy.key"],
        ] {
            let said = fails(2, &args, dir.path());
            assert!(said.contains(why) && said.contains("fix: "), "{name}: {said}");
            assert_eq!(said.matches("error: ").count(), 1, "{name}: {said}");
        }
    }
    fails(4, &publish("missing.cpkg"), dir.path());
    assert_eq!(snapshot(&dir.path().join("repo")), before);
}

#[test]
fn a_version_is_published_once() {
    let dir = workshop();
    ok(&publish("demo.cpkg"), dir.path());
    let before = snapshot(&dir.path().join("repo"));
    assert_eq!(index(dir.path())["version"], 1);
    assert!(ok(&publish("demo.cpkg"), dir.path()).contains("published already"));
    assert_eq!(snapshot(&dir.path().join("repo")), before);

    edit(&dir.path().join("demo/package.yaml"), "priority: 100", "priority: 50");
    ok(&["package", "build", "demo", "-o", "other.cpkg"], dir.path());
    let said = fails(5, &publish("other.cpkg"), dir.path());
    assert!(said.contains("already published with other bytes"), "{said}");
    assert!(said.contains("fix: raise the version"), "{said}");
    assert_eq!(snapshot(&dir.path().join("repo")), before);

    edit(&dir.path().join("demo/package.yaml"), "version: 0.1.0", "version: 0.1.1");
    ok(&["package", "build", "demo", "-o", "other.cpkg"], dir.path());
    ok(&publish("other.cpkg"), dir.path());
    assert_eq!(index(dir.path())["version"], 2);
    assert_eq!(index(dir.path())["packages"].as_array().unwrap().len(), 2);
    assert!(dir.path().join("repo/demo/0.1.1/demo-0.1.1.cpkg.minisig").exists());
}

#[test]
fn a_lost_file_is_put_back_by_publishing_again() {
    let dir = workshop();
    ok(&publish("demo.cpkg"), dir.path());
    let artifact = dir.path().join("repo/demo/0.1.0/demo-0.1.0.cpkg");
    fs::write(&artifact, "rubbish").unwrap();
    ok(&publish("demo.cpkg"), dir.path());
    assert_eq!(fs::read(artifact).unwrap(), fs::read(dir.path().join("demo.cpkg")).unwrap());
}

#[test]
fn an_index_somebody_else_wrote_is_not_signed() {
    let dir = workshop();
    ok(&publish("demo.cpkg"), dir.path());
    edit(&dir.path().join("repo/index.signed"), "\"yanked\": false", "\"yanked\": true");
    edit(&dir.path().join("demo/package.yaml"), "version: 0.1.0", "version: 0.2.0");
    ok(&["package", "build", "demo", "-o", "next.cpkg"], dir.path());
    let before = snapshot(&dir.path().join("repo"));
    let said = fails(6, &publish("next.cpkg"), dir.path());
    assert!(said.contains("--rebuild-index"), "{said}");
    assert_eq!(snapshot(&dir.path().join("repo")), before);

    ok(&[&PUBLISH[..], &["--rebuild-index", "next.cpkg"]].concat(), dir.path());
    let index = index(dir.path());
    assert_eq!(index["packages"].as_array().unwrap().len(), 2);
    assert_eq!(index["packages"][0]["yanked"], false);
    assert!(index["version"].as_u64().unwrap() > 1_700_000_000, "it must outrun every earlier one");

    fs::remove_file(dir.path().join("repo/index.signed")).unwrap();
    fails(5, &publish("next.cpkg"), dir.path());
}

#[test]
fn a_new_key_takes_over_where_the_old_one_is_named() {
    let dir = workshop();
    ok(&publish("demo.cpkg"), dir.path());
    ok(&["package", "keygen", "-o", "new"], dir.path());
    let refresh = [
        "package",
        "publish",
        "--repository",
        "repo",
        "--key",
        "new/canopy.key",
        "--refresh-index",
    ];
    assert!(fails(6, &refresh, dir.path()).contains("--trusted-key"));
    ok(&[&refresh[..], &["--trusted-key", "keys/canopy.pub"]].concat(), dir.path());
    assert_eq!(index(dir.path())["version"], 2);
    ok(&refresh, dir.path());
    assert_eq!(index(dir.path())["version"], 3);
}

#[test]
fn a_version_is_withdrawn_and_brought_back() {
    let dir = workshop();
    let yank = |version: &'static str| {
        let mut args = vec!["package", "yank", "--repository", "repo", "--key", "keys/canopy.key"];
        args.push(version);
        args
    };
    fails(4, &yank("demo@0.1.0"), dir.path());
    ok(&publish("demo.cpkg"), dir.path());
    let file = snapshot(&dir.path().join("repo/demo"));
    assert!(ok(&yank("demo@0.1.0"), dir.path()).contains("withdrawn now"));
    let withdrawn = index(dir.path());
    assert_eq!(withdrawn["packages"][0]["yanked"], true);
    assert_eq!(withdrawn["version"], 2);
    // The file stays for the hosts that run it, and twice is as good as once.
    assert_eq!(snapshot(&dir.path().join("repo/demo")), file);
    assert!(ok(&yank("demo@0.1.0"), dir.path()).contains("withdrawn already"));
    assert_eq!(index(dir.path())["version"], 2);

    let mut undo = yank("demo@0.1.0");
    undo.push("--undo");
    ok(&undo, dir.path());
    // `yanked` is left out where it is false.
    assert_ne!(index(dir.path())["packages"][0]["yanked"], true);

    let said = fails(4, &yank("demo@0.9.0"), dir.path());
    assert!(said.contains("0.9.0"), "{said}");
    let said = fails(2, &yank("demo"), dir.path());
    assert!(said.contains("name@1.2.3"), "{said}");

    // Who may not sign the index may not withdraw either.
    ok(&["package", "keygen", "-o", "other"], dir.path());
    let before = snapshot(&dir.path().join("repo"));
    let mut other = yank("demo@0.1.0");
    other[5] = "other/canopy.key";
    fails(6, &other, dir.path());
    assert_eq!(snapshot(&dir.path().join("repo")), before);
}

#[test]
fn publishers_at_the_same_time_lose_nothing() {
    let dir = workshop();
    let manifest = dir.path().join("demo/package.yaml");
    let mut from = "version: 0.1.0".to_owned();
    for n in 0..6 {
        let to = format!("version: 1.{n}.0");
        edit(&manifest, &from, &to);
        ok(&["package", "build", "demo", "-o", &format!("{n}.cpkg")], dir.path());
        from = to;
    }
    let publishers: Vec<_> = (0..6)
        .map(|n| {
            Command::new(env!("CARGO_BIN_EXE_canopy"))
                .args(publish(&format!("{n}.cpkg")))
                .current_dir(dir.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut publisher in publishers {
        assert!(publisher.wait().unwrap().success());
    }
    assert_eq!(index(dir.path())["version"], 6);
    assert_eq!(index(dir.path())["packages"].as_array().unwrap().len(), 6);
    let repository = dir.path().join("repo");
    let left_over =
        snapshot(&repository).into_iter().any(|(path, _)| path.to_string_lossy().ends_with(".new"));
    assert!(!left_over);
}

#[test]
fn a_variant_is_built_checked_and_its_slips_are_told() {
    let dir = workshop();
    let demo = dir.path().join("demo");
    let manifest = demo.join("package.yaml");
    let text = fs::read_to_string(&manifest).unwrap();
    let line = text.lines().find(|line| line.trim().starts_with("object:")).unwrap();
    let object = line.split_whitespace().nth(1).unwrap();
    let variant = "    variants: [{ object: new.bpf.o, requires: { features: [ring-bufer] } }]";
    edit(&manifest, line, &format!("{line}\n{variant}"));
    let said = fails(2, &["package", "check", "demo"], dir.path());
    assert!(said.contains("programs[0].variants[0].object"), "{said}");
    fs::copy(demo.join(object), demo.join("new.bpf.o")).unwrap();

    let output = canopy(&["package", "build", "demo", "-o", "new.cpkg"], dir.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let warning = "warning: programs[0].variants[0].requires.features[0]: canopy doctor tells of \
                   no \"ring-bufer\"; did you mean \"ring-buffer\"?\n";
    assert!(said.ends_with(warning), "{said}");
    edit(&manifest, "ring-bufer", "ring-buffer");
    let output = canopy(&["package", "check", "demo"], dir.path());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert!(output.status.success());
}

/// A package of one program of this C text, compiled.
fn package_of(dir: &Path, text: &str) {
    let demo = dir.join("demo");
    fs::create_dir(&demo).unwrap();
    fs::write(
        demo.join("package.yaml"),
        "{ name: demo, version: 0.1.0, description: demo, license: MIT,\n  programs: [{ name: demo, \
         object: demo.bpf.o, function: demo, hooks: [xdp] }] }\n",
    )
    .unwrap();
    let object = canopy_test_support::compile_text(text).unwrap();
    fs::write(demo.join("demo.bpf.o"), object).unwrap();
}

#[test]
fn check_and_build_refuse_what_no_loader_takes() {
    let head = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n\
                char _license[] SEC(\"license\") = \"GPL\";\n";
    for (body, parts) in [
        // By the manifest's own rules, which the registry has too.
        (
            "SEC(\"tracepoint/sched/sched_switch\") int demo(void *ctx) { return 0; }",
            ["tracepoint/sched/sched_switch", "declares it for xdp", "programs[0].object"],
        ),
        // By the loader's reader.
        (
            "extern void bpf_throw(__u64) __ksym;\n\
             static __attribute__((noinline)) int f(int x) { if (x == 9) bpf_throw(0); return x; }\n\
             SEC(\"xdp\") int demo(struct xdp_md *ctx) { return f(ctx->rx_queue_index) ? 1 : 2; }",
            ["bpf_throw", "function \"f\"", "programs[0].object"],
        ),
        (
            "extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *, __u64 *) __ksym;\n\
             SEC(\"xdp\") int demo(struct xdp_md *ctx)\n\
             { __u64 t; return bpf_xdp_metadata_rx_timestamp(ctx, &t) ? 1 : 2; }",
            ["bound to one device", "bpf_xdp_metadata_rx_timestamp", "programs[0].object"],
        ),
        (
            "struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, __u32); __type(value, __u32); } \
             m SEC(\".maps\");\n\
             SEC(\"xdp\") int demo(struct xdp_md *ctx)\n\
             { __u32 k = 0; return bpf_map_lookup_elem(&m, &k) ? 1 : 2; }",
            ["map \"m\"", "number of entries", "programs[0].object"],
        ),
    ] {
        let dir = TempDir::new().unwrap();
        package_of(dir.path(), &format!("{head}{body}\n"));
        for command in ["check", "build"] {
            let said = fails(2, &["package", command, "demo"], dir.path());
            for part in parts {
                assert!(said.contains(part), "{command}: {said}");
            }
            assert!(said.contains("fix: "), "{said}");
        }
    }
    let dir = TempDir::new().unwrap();
    let frags = "SEC(\"xdp.frags\") int demo(struct xdp_md *ctx) { return XDP_PASS; }";
    package_of(dir.path(), &format!("{head}{frags}\n"));
    let output = canopy(&["package", "check", "demo"], dir.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("frags: true"), "{said}");
}

#[test]
fn text_that_nobody_sees_is_told_and_not_shown() {
    let dir = workshop();
    let manifest = dir.path().join("demo/package.yaml");
    let readme = dir.path().join("demo/README.md");
    fs::write(&readme, "# demo\n\nfine ⚠\u{fe0f}\nnot \u{202e}enif\u{1b}[2J\n").unwrap();
    let output = canopy(&["package", "check", "demo"], dir.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("README.md line 4: a character that nobody sees (U+202E)"), "{said}");
    let text = fs::read_to_string(&manifest).unwrap();
    let changed: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix("description: ") {
            Some(_) => "description: \"sa\\u202efe\"".to_owned(),
            None => line.to_owned(),
        })
        .collect();
    fs::write(&manifest, changed.join("\n")).unwrap();
    let said = fails(2, &["package", "check", "demo"], dir.path());
    assert!(said.contains("at: demo/package.yaml: description"), "{said}");
    assert!(said.contains("U+202E") && !said.contains('\u{202e}'), "{said}");
    // What a file of somebody else is quoted with harms nobody either.
    fs::write(&manifest, "name: \"x\\e[2J\\u202e\"\n").unwrap();
    let said = fails(2, &["package", "check", "demo"], dir.path());
    assert!(!said.contains(['\u{202e}', '\u{1b}']), "{said:?}");
}

#[test]
fn a_context_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(&file, "contexts: []\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let args = ["--context-file", "config.yaml", "get", "hosts"];
    let said = fails(6, &args, dir.path());
    assert!(said.contains("others may write the context file"), "{said}");
    assert!(said.contains("chmod go-w "), "{said}");
}
