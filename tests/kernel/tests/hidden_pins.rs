//! A chain whose pins are hidden, moved or removed is recognised and taken over, and never attached a
//! second time. Judged by what the kernel lists on the hook and by counts of packets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    Hook,
    wire::{ChainState, ChainStatus, GetRequest},
};
use canopy_kernel_aya::{pins::Pins, sys};
use canopy_kernel_tests::{
    files,
    host::{Loader, Site, Task, attached},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    packet::Udp4,
    pair::{HOST_LINK, Pair},
    traffic::send_frames,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
};

const THREE: &str = "-all,+bpf,+net_admin,+perfmon";

struct World {
    pair: Pair,
    bpffs: BpffsDir,
    dir: tempfile::TempDir,
}

/// A file system over a directory, for as long as this lives.
struct Cover(PathBuf);

impl Cover {
    fn new(kind: &str, dir: &Path) -> Self {
        mount(Some("none"), dir, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
        Self(dir.to_owned())
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

impl World {
    fn new() -> Self {
        Self {
            pair: Pair::new().unwrap(),
            bpffs: BpffsDir::new().unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn site(&self) -> Site {
        let dir = self.dir.path();
        Site {
            state: dir.join("state"),
            bpffs: self.bpffs.path().to_owned(),
            packages: BTreeMap::from([
                ("firewall@*".to_owned(), files::write(dir, &files::starter("firewall"))),
                ("flowmeter@*".to_owned(), files::write(dir, &files::starter("flowmeter"))),
            ]),
        }
    }

    fn here<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pair.host.run(|| Ok(body())).unwrap()
    }

    fn start(&self) -> Loader {
        let site = self.site();
        self.here(|| Loader::start(&site, |_| {})).unwrap()
    }

    fn status(&self, loader: &Loader, hook: Hook) -> ChainStatus {
        let reply = self.here(|| loader.engine.get(&GetRequest::default())).unwrap();
        reply.chains.into_iter().find(|chain| chain.hook == hook).unwrap()
    }

    /// A change by a process of its own with few capabilities; its error output where it failed.
    fn change_confined(&self, document: &Value) -> Result<(), String> {
        let task =
            Task { site: self.site(), document: document.clone(), more: false, profile: false };
        let task = serde_json::to_string(&task).unwrap();
        let output = self.here(|| {
            Command::new("setpriv")
                .arg(format!("--bounding-set={THREE}"))
                .arg(format!("--inh-caps={THREE}"))
                .arg("--no-new-privs")
                .arg(env!("CARGO_BIN_EXE_canopy-test-change"))
                .arg(task)
                .output()
                .unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    /// Every program on a hook, by the kernel.
    fn on_hook(&self, hook: Hook) -> Vec<u32> {
        self.here(|| {
            if hook == Hook::Xdp {
                return attached(&self.pair).get(&hook).copied().into_iter().collect();
            }
            let index = if_nametoindex(HOST_LINK).unwrap();
            let listed = sys::tcx_query(index, hook == Hook::TcEgress).unwrap();
            listed.into_iter().map(|one| one.prog_id).collect()
        })
    }

    fn frames(&self, count: usize) {
        send_frames(&self.pair, &vec![Udp4::to_port(9).frame(); count]).unwrap();
    }

    fn pins(&self) -> BTreeSet<PathBuf> {
        fn below(dir: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                // The kernel's own, at the top of every bpffs.
                let kernels = ["maps.debug", "progs.debug"].map(Into::into);
                if kernels.contains(&entry.file_name()) {
                } else if entry.path().is_dir() {
                    below(&entry.path(), found);
                } else {
                    found.insert(entry.path());
                }
            }
        }
        let mut found = BTreeSet::new();
        below(self.bpffs.path(), &mut found);
        found
    }
}

fn chain(hook: &str, package: &str, more: &Value) -> Value {
    let mut chain = json!({ "interface": HOST_LINK, "hook": hook,
        "programs": [{ "name": "first", "package": package }] });
    chain.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "chains": [chain] })
}

fn empty(hook: &str) -> Value {
    json!({ "chains": [{ "interface": HOST_LINK, "hook": hook, "programs": [] }] })
}

fn runs(status: &ChainStatus) -> u64 {
    status.programs[0].runs
}

fn key(hook: Hook) -> canopy_api::ChainKey {
    canopy_api::ChainKey::new(HOST_LINK.parse().unwrap(), hook)
}

#[test]
fn a_chain_below_a_fresh_bpffs_is_taken_over_with_its_counts() {
    for (hook, package, more) in [
        (Hook::Xdp, "firewall", json!({})),
        (Hook::Xdp, "firewall", json!({ "xdp_mode": "generic" })),
        (Hook::TcIngress, "flowmeter", json!({})),
        (Hook::TcEgress, "flowmeter", json!({})),
    ] {
        let world = World::new();
        let document = chain(hook.as_str(), package, &more);
        let loader = world.start();
        world.here(|| loader.apply(&document)).unwrap();
        world.frames(5);
        let before = world.status(&loader, hook);
        let pinned = world.pins();
        drop(loader);
        let cover = Cover::new("bpf", world.bpffs.path());
        assert_eq!(world.pins(), BTreeSet::new());

        let loader = world.start();
        let after = world.status(&loader, hook);
        assert_eq!(after.state, ChainState::Active, "{after:?}");
        let ids = |status: &ChainStatus| {
            let observed = status.observed.clone().unwrap();
            (observed.program_id, observed.link_id, observed.generation, observed.mode)
        };
        assert_eq!(ids(&after), ids(&before), "{hook}");
        assert_eq!(world.on_hook(hook), [ids(&before).0], "attached once");
        assert_eq!(world.pins(), pinned, "everything is pinned again");
        assert_eq!((after.restored, after.pin_problem), (0, None));
        if hook != Hook::TcEgress {
            world.frames(5);
            let counted = runs(&world.status(&loader, hook));
            assert!(counted >= runs(&before) + 5, "{hook}: {counted}");
        }
        // It is the loader's as before: changed in its link, and removed.
        world
            .here(|| {
                loader.apply(&chain(
                    hook.as_str(),
                    package,
                    &json!({
                        "programs": [{ "name": "second", "package": package }]
                    }),
                ))
            })
            .unwrap();
        let changed = world.status(&loader, hook).observed.unwrap();
        assert_eq!(changed.link_id, ids(&before).1);
        assert_eq!(world.on_hook(hook), [changed.program_id]);
        world.here(|| loader.apply(&empty(hook.as_str()))).unwrap();
        assert_eq!(world.on_hook(hook), [0_u32; 0]);
        assert_eq!(world.pins(), BTreeSet::new());
        drop(loader);
        drop(cover);
    }
}

#[test]
fn without_the_right_a_hidden_chain_is_told_and_not_doubled() {
    for (hook, package) in [(Hook::Xdp, "firewall"), (Hook::TcIngress, "flowmeter")] {
        let world = World::new();
        let document = chain(hook.as_str(), package, &json!({}));
        world.change_confined(&document).unwrap();
        let there = world.on_hook(hook);
        assert_eq!(there.len(), 1);
        let cover = Cover::new("bpf", world.bpffs.path());
        // Neither by an apply of the same, nor of another, nor by a removal.
        let other = chain(
            hook.as_str(),
            package,
            &json!({
                "programs": [{ "name": "other", "package": package }]
            }),
        );
        for document in [&document, &other, &empty(hook.as_str())] {
            let said = world.change_confined(document).unwrap_err();
            assert!(said.contains("its own program"), "{said}");
            assert!(said.contains(&format!("umount {}", world.bpffs.path().display())), "{said}");
            assert_eq!(world.on_hook(hook), there, "{said}");
        }
        assert_eq!(world.pins(), BTreeSet::new(), "nothing was pinned for nothing");
        // What was said to be done helps.
        drop(cover);
        world.change_confined(&other).unwrap();
        let now = world.on_hook(hook);
        assert_eq!(now.len(), 1);
        assert_ne!(now, there);
        world.change_confined(&empty(hook.as_str())).unwrap();
        assert_eq!(world.on_hook(hook), [0_u32; 0]);
    }
}

#[test]
fn a_hidden_chain_is_known_by_name_without_any_memory() {
    for (hook, package, lost) in [
        (Hook::Xdp, "firewall", "state/attached.json"),
        (Hook::TcIngress, "flowmeter", "state/attached.json"),
        (Hook::TcIngress, "flowmeter", "state"),
        (Hook::TcEgress, "flowmeter", "state"),
    ] {
        let world = World::new();
        let document = chain(hook.as_str(), package, &json!({}));
        world.change_confined(&document).unwrap();
        let there = world.on_hook(hook);
        let lost = world.dir.path().join(lost);
        if lost.is_dir() {
            fs::remove_dir_all(&lost).unwrap();
        } else {
            fs::remove_file(&lost).unwrap();
        }
        let cover = Cover::new("bpf", world.bpffs.path());
        let said = world.change_confined(&document).unwrap_err();
        assert!(said.contains("of a Canopy loader"), "{hook}: {said}");
        assert!(said.contains(&format!("umount {}", world.bpffs.path().display())), "{said}");
        assert_eq!(world.on_hook(hook), there, "{said}");
        assert_eq!(world.pins(), BTreeSet::new());
        // What was said to be done helps.
        drop(cover);
        world.change_confined(&document).unwrap();
        assert_eq!(world.on_hook(hook).len(), 1);
    }
}

#[test]
fn a_foreign_program_keeps_no_chain_from_a_new_host() {
    let world = World::new();
    // r0 = TCX_NEXT; exit
    let next = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let prog = sys::prog_load(&sys::ProgLoad::new(3, &next, "GPL", "somebody_else")).unwrap();
    let _link = world.here(|| {
        let index = if_nametoindex(HOST_LINK).unwrap();
        let target = sys::LinkTarget::TcxIngress(sys::LinkOrder::First);
        sys::link_create(&prog, index, target).unwrap()
    });
    world.change_confined(&chain("tc-ingress", "flowmeter", &json!({}))).unwrap();
    assert_eq!(world.on_hook(Hook::TcIngress).len(), 2);
}

#[test]
fn who_holds_the_hook_is_not_guessed_without_the_right_to_ask() {
    let world = World::new();
    // r0 = XDP_PASS; exit
    let pass = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let pass = sys::ProgLoad {
        expected_attach_type: 37,
        ..sys::ProgLoad::new(6, &pass, "GPL", "somebody_else")
    };
    let prog = sys::prog_load(&pass).unwrap();
    let _link = world.here(|| {
        let index = if_nametoindex(HOST_LINK).unwrap();
        sys::link_create(&prog, index, sys::LinkTarget::XdpNative).unwrap()
    });
    let said = world.change_confined(&chain("xdp", "firewall", &json!({}))).unwrap_err();
    assert!(said.contains(&format!("program {}", sys::prog_info(&prog).unwrap().id)), "{said}");
    assert!(!said.contains("netlink") && said.contains("bpftool net show"), "{said}");
}

#[test]
fn pins_that_were_moved_are_found_without_more_rights() {
    for (hook, package) in [(Hook::Xdp, "firewall"), (Hook::TcIngress, "flowmeter")] {
        let world = World::new();
        let document = chain(hook.as_str(), package, &json!({}));
        world.change_confined(&document).unwrap();
        let (there, pinned) = (world.on_hook(hook), world.pins());
        let elsewhere = BpffsDir::new().unwrap();
        let pins = world.bpffs.path().join(HOST_LINK);
        fs::rename(&pins, elsewhere.path().join("moved")).unwrap();
        world.change_confined(&document).unwrap();
        assert_eq!(world.on_hook(hook), there);
        assert_eq!(world.pins(), pinned);
    }
}

#[test]
fn a_link_that_lost_its_pin_is_pinned_again_or_told() {
    for (hook, package) in [(Hook::Xdp, "firewall"), (Hook::TcIngress, "flowmeter")] {
        let world = World::new();
        let document = chain(hook.as_str(), package, &json!({}));
        world.change_confined(&document).unwrap();
        let there = world.on_hook(hook);
        let pin = Pins::new(world.bpffs.path()).link(&key(hook));
        let held: OwnedFd = sys::obj_get(&pin).unwrap();
        let id = sys::link_info(&held).unwrap().id;
        fs::remove_file(&pin).unwrap();

        let said = world.change_confined(&document).unwrap_err();
        assert!(said.contains("its own program"), "{said}");
        assert_eq!(world.on_hook(hook), there);
        if hook == Hook::TcIngress {
            // As it says.
            let told = format!("bpftool link pin id {id} {}", pin.display());
            assert!(said.contains(&told), "{said}");
            let words: Vec<_> = told.split(' ').collect();
            world.pair.host.exec(&words).unwrap();
            world.change_confined(&document).unwrap();
            assert_eq!(world.on_hook(hook), there);
            fs::remove_file(&pin).unwrap();
        }
        let loader = world.start();
        assert_eq!(world.status(&loader, hook).state, ChainState::Active);
        assert_eq!(world.on_hook(hook), there);
        assert_eq!(sys::link_info(&sys::obj_get(&pin).unwrap()).unwrap().id, id);
        drop(held);
        world.frames(1);
        assert_eq!(world.on_hook(hook), there, "its pin holds it");
    }
}

#[test]
fn a_chain_of_a_loader_without_state_is_not_doubled() {
    let world = World::new();
    let document = chain("tc-ingress", "flowmeter", &json!({}));
    let loader = world.start();
    world.here(|| loader.apply(&document)).unwrap();
    drop(loader);
    let there = world.on_hook(Hook::TcIngress);
    fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    let _cover = Cover::new("bpf", world.bpffs.path());
    let loader = world.start();
    let error = world.here(|| loader.apply(&document)).unwrap_err().into_api();
    assert!(error.message.contains("of a Canopy loader"), "{error:?}");
    assert!(error.remedy.unwrap().contains("umount"));
    assert_eq!(world.on_hook(Hook::TcIngress), there);
}

#[test]
fn a_filter_of_clsact_without_pins_is_taken_over_in_its_place() {
    let world = World::new();
    let document = chain("tc-ingress", "flowmeter", &json!({ "tc_mode": "clsact" }));
    world.change_confined(&document).unwrap();
    let _cover = Cover::new("bpf", world.bpffs.path());
    world.change_confined(&document).unwrap();
    let filters =
        world.pair.host.exec(&["tc", "filter", "show", "dev", HOST_LINK, "ingress"]).unwrap();
    assert_eq!(filters.matches("handle 0x").count(), 1, "{filters}");
    let loader = world.start();
    assert_eq!(world.status(&loader, Hook::TcIngress).state, ChainState::Active);
}

#[test]
fn a_running_loader_keeps_its_chains_when_bpffs_goes() {
    let world = World::new();
    let loader = world.start();
    world.here(|| loader.apply(&chain("xdp", "firewall", &json!({})))).unwrap();
    world.here(|| loader.apply(&chain("tc-ingress", "flowmeter", &json!({})))).unwrap();
    let (there, pinned) = (world.on_hook(Hook::TcIngress), world.pins());
    // Another bpffs: everything is pinned there too.
    let cover = Cover::new("bpf", world.bpffs.path());
    world.here(|| loader.engine.tick());
    assert_eq!(world.pins(), pinned);
    drop(cover);
    // None: the chains run on, it is told, and nothing is written where no pin can be.
    let cover = Cover::new("tmpfs", world.bpffs.path());
    for _ in 0..5 {
        assert_eq!(world.here(|| loader.engine.tick()), []);
    }
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let status = world.status(&loader, hook);
        assert_eq!(status.state, ChainState::Active, "{status:?}");
        let problem = status.pin_problem.unwrap();
        assert!(problem.contains("BPF file system"), "{problem}");
    }
    assert_eq!(fs::read_dir(world.bpffs.path()).unwrap().count(), 0);
    let error = world
        .here(|| loader.apply(&chain("tc-egress", "flowmeter", &json!({}))))
        .unwrap_err()
        .into_api();
    assert!(error.message.contains("BPF file system"), "{error:?}");
    drop(cover);
    assert_eq!(world.here(|| loader.engine.tick()), []);
    assert_eq!(world.status(&loader, Hook::Xdp).pin_problem, None);
    assert_eq!(world.on_hook(Hook::TcIngress), there);
    assert_eq!(world.pins(), pinned);
}

#[test]
fn a_bpffs_that_became_read_only_is_told() {
    let mut world = World::new();
    let outer = std::mem::replace(&mut world.bpffs, BpffsDir::new().unwrap());
    let _own = Cover::new("bpf", world.bpffs.path());
    let loader = world.start();
    world.here(|| loader.apply(&chain("xdp", "firewall", &json!({})))).unwrap();
    let there = world.on_hook(Hook::Xdp);
    let pins = Pins::new(world.bpffs.path());
    let pin = pins.cells(&key(Hook::Xdp), 1);
    fs::remove_file(&pin).unwrap();
    let remount = |flags| {
        let flags = MsFlags::MS_REMOUNT | flags;
        mount(None::<&str>, world.bpffs.path(), None::<&str>, flags, None::<&str>).unwrap();
    };
    remount(MsFlags::MS_RDONLY);
    world.here(|| loader.engine.tick());
    let status = world.status(&loader, Hook::Xdp);
    assert_eq!(status.state, ChainState::Active);
    assert!(status.pin_problem.unwrap().to_lowercase().contains("read-only"));
    assert_eq!(world.on_hook(Hook::Xdp), there);
    // A new one cannot open what is pinned there: it says so and touches nothing.
    drop(loader);
    let loader = world.start();
    let status = world.status(&loader, Hook::Xdp);
    assert_eq!(status.state, ChainState::Diverged);
    assert!(status.reason.unwrap().contains("Read-only"));
    assert_eq!(world.on_hook(Hook::Xdp), there);
    remount(MsFlags::empty());
    world.here(|| loader.engine.tick());
    let status = world.status(&loader, Hook::Xdp);
    assert_eq!((status.state, status.pin_problem), (ChainState::Active, None));
    drop(outer);
}

#[test]
fn a_chain_removed_below_a_cover_leaves_no_pins() {
    let world = World::new();
    let loader = world.start();
    world.here(|| loader.apply(&chain("xdp", "firewall", &json!({})))).unwrap();
    world.here(|| loader.apply(&chain("tc-ingress", "flowmeter", &json!({})))).unwrap();
    let cover = Cover::new("tmpfs", world.bpffs.path());
    world.here(|| loader.engine.tick());
    // Its own chain on the other hook is nobody else's for that.
    assert_eq!(world.status(&loader, Hook::TcIngress).placement.unwrap().before, []);
    world.here(|| loader.apply(&empty("xdp"))).unwrap();
    assert_eq!(world.on_hook(Hook::Xdp), [0; 0]);
    drop((loader, cover));
    let loader = world.start();
    world.here(|| loader.engine.tick());
    let left = world.pins();
    assert!(!left.iter().any(|pin| pin.to_string_lossy().contains("/xdp/")), "{left:?}");
    assert_eq!(world.on_hook(Hook::TcIngress).len(), 1);
}
