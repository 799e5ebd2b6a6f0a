//! The audit trail on the whole stack: what a loader's says, what is stored of all, what tampering with
//! either looks like, and that nothing is changed that cannot be recorded.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use canopy_api::endpoint::Service;
use canopy_e2e::{BLOCKED, INTERFACE, World};
use canopy_test_support::wait_for;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

fn trail(world: &World) -> PathBuf {
    world.stack().layout().state_dir().join("loader/audit")
}

/// Exit code and text of `canopy audit verify`.
fn verify(world: &World, path: &Path, rest: &[&str]) -> (i32, String) {
    let path = path.to_str().unwrap();
    let answer = world.canopy(&[&["audit", "verify", path], rest].concat()).unwrap();
    (answer.code, format!("{}{}", answer.out, answer.err))
}

fn records(world: &World, rest: &[&str]) -> Vec<Value> {
    let path = trail(world);
    let arguments = [&["audit", "show", path.to_str().unwrap(), "-o", "json"], rest].concat();
    let answer = world.canopy(&arguments).unwrap();
    answer.text().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A copy of the trail with one file changed.
fn changed(world: &World, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    let to = world.dir().join(name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(trail(world)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let file = fs::read_dir(&to).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
    to
}

#[test]
fn a_trail_says_who_did_what_and_shows_tampering() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let bad = World::firewall().replace("firewall@^0.1", "firewall@^9");
    assert_eq!(world.try_apply(&bad).unwrap().code, 4);
    world.canopy_as("viewer", &["delete", "chain", INTERFACE, "xdp"]).unwrap();
    world.canopy(&["drain"]).unwrap().text().unwrap();
    world.canopy(&["drain", "--undo"]).unwrap().text().unwrap();

    let all = records(&world, &[]);
    let told: Vec<_> = all
        .iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap_or("-").to_owned();
            [text("kind"), text("principal"), text("verb"), text("decision")].join(" ")
        })
        .collect();
    assert_eq!(
        told,
        [
            "opened - - -",
            "begun u-operator apply -",
            "ended u-operator apply done",
            "begun u-operator apply -",
            "ended u-operator apply failed",
            "begun u-admin drain -",
            "ended u-admin drain done",
            "begun u-admin drain -",
            "ended u-admin drain done",
        ]
    );
    let filtered =
        records(&world, &["--by", "u-operator", "--decision", "failed", "--since", "1h"]);
    assert_eq!(filtered, all[4..5], "the filters");
    assert_eq!(records(&world, &["--until", "2020-01-01T00:00:00Z"]), [] as [Value; 0]);

    // The chain outlives the loader, and says what it was in the middle of.
    let (code, said) = verify(&world, &trail(&world), &[]);
    assert!(code == 0 && said.contains("records 1 to 9\nas it was written"), "{said}");
    let head = said.lines().last().unwrap().strip_prefix("head ").unwrap().to_owned();
    let loader = world.stack().process(Service::Loader);
    loader.signal(Signal::SIGKILL).unwrap();
    loader.stop().unwrap();
    world
        .inside(|stack| {
            stack.start_service(Service::Loader)?;
            stack.wait_ready(Service::Loader)
        })
        .unwrap();
    world.apply(&World::firewall()).unwrap();
    let (code, said) = verify(&world, &trail(&world), &["--head", &head]);
    assert!(code == 0 && said.contains("records 1 to 11"), "{said}");
    let last = said.lines().last().unwrap().strip_prefix("head ").unwrap();

    for (name, change, finding) in [
        (
            "edit",
            (|text| text.replacen("u-operator", "u-nobody", 1)) as fn(String) -> String,
            "does not follow from the record before it",
        ),
        ("gap", |text| without(&text, 3), "records 4 to 4 are missing"),
        ("front", |text| without(&text, 0), "the chain begins at record 2"),
        ("cut", |text| without(&text, 10), "the chain ends at record 10; it had 11 already"),
    ] {
        let copy = changed(&world, name, change);
        let (code, said) = verify(&world, &copy, &["--head", last]);
        assert!(code == 3 && said.contains(finding), "{name}: {said}");
    }
    world.end().unwrap();
}

/// A text without one line.
fn without(text: &str, at: usize) -> String {
    let lines = text.lines().enumerate().filter(|(i, _)| *i != at);
    lines.flat_map(|(_, line)| [line, "\n"]).collect()
}

/// Stored records of the loader, as whoever may ask for them gets them.
fn stored(world: &World, rest: &[&str]) -> Vec<Value> {
    let arguments = ["get", "audit", "-A", "-o", "json", "--service", "loader"];
    let answer = world.canopy(&[&arguments, rest].concat()).unwrap();
    answer.text().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until as many are stored.
fn wait_stored(world: &World, count: usize) -> Vec<Value> {
    wait_for(Duration::from_secs(20), "the loader's records are stored", || {
        let records = stored(world, &[]);
        if records.len() == count { Ok(records) } else { Err(format!("{records:#?}")) }
    })
    .unwrap()
}

#[test]
fn the_stored_trail_answers_and_shows_what_was_done_to_a_hosts() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let bad = World::firewall().replace("firewall@^0.1", "firewall@^9");
    assert_eq!(world.try_apply(&bad).unwrap().code, 4);
    world.canopy(&["drain"]).unwrap().text().unwrap();
    let all = wait_stored(&world, 7);
    let without_place = |mut record: Value| {
        record.as_object_mut().unwrap().remove("stored").unwrap();
        record
    };
    let bare: Vec<Value> = all.iter().cloned().map(without_place).collect();
    assert_eq!(bare, records(&world, &[]), "what is stored is what the host has, in order");

    for (filter, expected) in [
        (&["--by", "u-operator"] as &[&str], 1..5),
        (&["--decision", "failed"], 4..5),
        (&["--verb", "drain"], 5..7),
        (&["--limit", "2"], 5..7),
        (&["--host", "e2e", "--since", "1h"], 0..7),
        (&["--since", "2999-01-01T00:00:00Z"], 0..0),
        (&["--until", "2020-01-01T00:00:00Z"], 0..0),
        (&["--verb", "apply", "--by", "u-admin"], 0..0),
    ] {
        assert_eq!(stored(&world, filter), all[expected], "{filter:?}");
    }
    let table = world.canopy(&["get", "audit", "--verb", "drain"]).unwrap();
    let table = table.text().unwrap();
    assert!(table.lines().count() == 3 && table.contains("h-e2e-loader"), "{table}");
    let central = world.canopy(&["get", "audit", "-A", "--service", "policy"]).unwrap();
    let central = central.text().unwrap();
    assert!(central.contains("issued: token") && central.contains("connected"), "{central}");
    let denied = world.canopy_as("operator", &["get", "audit"]).unwrap();
    assert_eq!(denied.code, 6, "{}{}", denied.out, denied.err);

    // Another policy service goes on where the one before ended.
    world.stack().process(Service::Policy).stop().unwrap();
    world
        .inside(|stack| {
            stack.start_service(Service::Policy)?;
            stack.wait_ready(Service::Policy)
        })
        .unwrap();
    world.canopy(&["drain", "--undo"]).unwrap().text().unwrap();
    wait_stored(&world, 9);

    // The store is verified here, by what is signed.
    let key = world.stack().layout().audit_key().with_extension("pub");
    let key = key.to_str().unwrap();
    let said = wait_for(Duration::from_secs(20), "all of it is signed", || {
        let answer = world.canopy(&["audit", "verify", "--key", key]).unwrap();
        let said = format!("{}{}", answer.out, answer.err);
        let good = answer.code == 0 && said.contains("records 1 to 9, signed to 9");
        if good { Ok(said) } else { Err(said) }
    })
    .unwrap();
    assert!(said.contains("s-policy") && said.contains("as it was written"), "{said}");

    // So is the host's trail, without asking the host what it had.
    let (code, said) = verify(&world, &trail(&world), &["--from-policy", "--key", key]);
    assert!(code == 0 && said.contains("as it was written"), "{said}");
    let printed = world.canopy(&["audit", "checkpoints"]).unwrap();
    let kept = world.dir().join("checkpoints");
    fs::write(&kept, printed.text().unwrap()).unwrap();
    let kept = kept.to_str().unwrap();
    let by_file = ["--checkpoints", kept, "--key", key];
    let (code, said) = verify(&world, &trail(&world), &by_file);
    assert!(code == 0 && said.contains("as it was written"), "{said}");
    for (name, change, finding) in [
        (
            "edit",
            (|text| text.replacen("u-operator", "u-nobody", 1)) as fn(String) -> String,
            "does not follow from the record before it",
        ),
        ("gap", |text| without(&text, 3), "records 4 to 4 are missing"),
        ("cut", |text| without(&text, 8), "the chain ends at record 8; it had 9 already"),
        // Nothing in the trail itself is against this one.
        (
            "last",
            |text| {
                let (before, last) = text.trim_end().rsplit_once('\n').unwrap();
                format!("{before}\n{}\n", last.replace("u-admin", "u-nobody"))
            },
            "record 9 is another one than was seen before",
        ),
    ] {
        let copy = changed(&world, name, change);
        for by in [&["--from-policy", "--key", key] as &[&str], &by_file] {
            let (code, said) = verify(&world, &copy, by);
            assert!(code == 3 && said.contains(finding), "{name}: {said}");
        }
    }
    let other = world.dir().join("other.pem");
    let made = Command::new(xtask::compile::binary("canopy-policy").unwrap())
        .args(["audit-key", "--output"])
        .arg(&other)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let other = other.with_extension("pub");
    let (code, said) =
        verify(&world, &trail(&world), &["--from-policy", "--key", other.to_str().unwrap()]);
    assert!(code == 3 && said.contains("a checkpoint is not believed"), "{said}");
    world.end().unwrap();
}

/// A small file system over a directory, gone at the end.
struct Small(PathBuf);

impl Small {
    fn over(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
            .arg(dir)
            .status();
        assert!(mounted.unwrap().success(), "cannot mount a tmpfs on {}", dir.display());
        Self(dir.to_owned())
    }

    /// Takes what room there is.
    fn fill(&self) -> PathBuf {
        let file = self.0.join("ballast");
        let full = fs::write(&file, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        file
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A stack that still has a file open there keeps it until it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn nothing_is_changed_while_the_disk_takes_no_records() {
    let world = World::start().unwrap();
    let restart = |between: &mut dyn FnMut()| {
        world.stack().process(Service::Loader).stop().unwrap();
        between();
        world.inside(|stack| stack.start_service(Service::Loader)).unwrap();
        world.inside(|stack| stack.wait_ready(Service::Loader)).unwrap();
    };
    let mut small = None;
    restart(&mut || small = Some(Small::over(&trail(&world))));
    let small = small.unwrap();
    world.apply(&World::firewall()).unwrap();
    let before = world.kernel_link().unwrap();

    let ballast = small.fill();
    // What is left of the last page takes some records more.
    let took = (0..20).take_while(|_| world.try_apply(&World::firewall()).unwrap().code == 0);
    assert!(took.count() < 20, "the disk is not full");
    let other = World::firewall().replace("priority: 20", "priority: 5");
    let refused = world.try_apply(&other).unwrap();
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(refused.err.contains("audit record of this cannot be kept, so nothing was done"));
    assert_eq!(world.canopy_as("operator", &["drain"]).unwrap().code, 7);
    assert_eq!(world.kernel_link().unwrap(), before);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0, "what runs runs on");
    let doctor = world.canopy(&["doctor"]).unwrap();
    assert!(doctor.code == 1 && doctor.out.contains("loader: audit"), "{}", doctor.out);

    fs::remove_file(ballast).unwrap();
    world.apply(&other).unwrap();
    assert_ne!(world.kernel_link().unwrap(), before);
    wait_for(Duration::from_secs(10), "the loader is well again", || {
        let ready = world.inside(|stack| stack.wait_ready(Service::Loader));
        ready.map_err(|error| format!("{error:#}"))
    })
    .unwrap();
    let (code, said) = verify(&world, &trail(&world), &[]);
    assert!(code == 0 && said.contains("as it was written"), "{said}");
    world.stack().process(Service::Loader).stop().unwrap();
    drop(small);
    world.end().unwrap();
}
