//! The loader's audit trail on the whole stack: what it says, what tampering looks like, and that
//! nothing is changed that cannot be recorded.
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
