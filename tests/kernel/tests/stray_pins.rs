//! What somebody else puts among the loader's pins is reported and left alone, and keeps nobody from
//! anything.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use canopy_api::{
    ChainKey, Hook,
    wire::{ChainState, GetRequest},
};
use canopy_kernel::{Expect, Kernel as _, KernelError};
use canopy_kernel_aya::{AyaKernel, pins::Pins, sys};
use canopy_kernel_tests::{
    files,
    host::{Loader, Site},
    live::{Live, PORT, dropper},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    pair::{HOST_LINK, Pair},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
};

fn map() -> OwnedFd {
    sys::map_create(&sys::MapCreate {
        map_type: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        name: "somebody_else",
        ..sys::MapCreate::default()
    })
    .unwrap()
}

fn program() -> OwnedFd {
    let insns = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    sys::prog_load(&sys::ProgLoad::new(6, &insns, "GPL", "somebody_else")).unwrap()
}

/// Strays of every kind at every depth, where no chain is; and below the chain's own directories.
fn strays(root: &Path, pins: &Pins, key: &ChainKey) -> Vec<PathBuf> {
    let mut made = Vec::new();
    let mut pin = |path: PathBuf| {
        sys::obj_pin(&map(), &path).unwrap();
        made.push(path);
    };
    // Files where directories are expected, names that no loader writes, maps among programs.
    pin(root.join("eth9"));
    pin(root.join("notes"));
    pin(root.join("%zz"));
    fs::create_dir_all(root.join("eth8")).unwrap();
    pin(root.join("eth8/xdp"));
    fs::create_dir_all(root.join("eth7/xdp/gen-1")).unwrap();
    pin(root.join("eth7/xdp/link"));
    pin(root.join("eth7/xdp/gen-01"));
    pin(root.join("eth7/xdp/gen-2"));
    pin(root.join("eth7/xdp/gen-1/prog"));
    pin(root.join("eth7/xdp/gen-1/maps"));
    pin(root.join("eth7/tc-ingres"));
    fs::create_dir_all(root.join("@netns/blue")).unwrap();
    pin(root.join("@netns/red"));
    pin(root.join("@netns/blue/eth0"));
    fs::create_dir_all(root.join("@shared")).unwrap();
    pin(root.join("@shared/eth0"));
    // Beside what is a chain's.
    pin(pins.chain(key).join("notes"));
    pin(pins.generation(key, 1).join("notes"));
    pin(pins.chain(key).parent().unwrap().join("notes"));
    let member = pins.maps(key, 1, &"drop".parse().unwrap());
    pin(member.parent().unwrap().join("%zz"));
    sys::obj_pin(&program(), &member.join("prog")).unwrap();
    made.push(member.join("prog"));
    // Directories.
    for dir in ["eth6", "%61", "eth7/xdp/gen-1/meta", "eth7/xdp/gen-x"] {
        fs::create_dir(root.join(dir)).unwrap();
        made.push(root.join(dir));
    }
    // Links: to a directory, to a chain's, to nothing, to themselves.
    for (link, to) in [
        ("eth5", root.join("eth7")),
        ("eth4", pins.chain(key)),
        ("dangling", root.join("nowhere")),
        ("eth3", root.join("eth3")),
        ("eth7/tc-egress", pins.chain(key)),
    ] {
        symlink(to, root.join(link)).unwrap();
        made.push(root.join(link));
    }
    made.sort();
    made
}

#[test]
fn strays_at_every_depth_are_reported_and_left_alone() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    live.attach(Hook::TcIngress, vec![dropper("drop", Hook::TcIngress, PORT)]);
    let state = live.observe().remove(0);
    assert_eq!(live.kernel.stray_pins().unwrap(), [""; 0].map(PathBuf::from));
    let root = live.bpffs.path();
    let made = strays(root, live.kernel.pins(), &key);
    assert_eq!(live.kernel.stray_pins().unwrap(), made);

    let ours = |live: &Live| live.observe().into_iter().find(|seen| seen.key == key).unwrap();
    assert_eq!(ours(&live), state);
    live.cells(&key, 1);
    live.kernel.maps(&key, 1).unwrap();
    // A new process starts, changes the chain and removes it.
    let Live { kernel, bpffs, pair } = live;
    drop(kernel);
    let live = Live { kernel: AyaKernel::new(bpffs.path()).unwrap(), bpffs, pair };
    assert_eq!(ours(&live), state);
    live.prepare(&key, 2, vec![dropper("drop", Hook::TcIngress, 9)]);
    live.switch(&key, 2, Expect::Generation(1)).unwrap();
    live.kernel(|kernel| kernel.detach(&key)).unwrap();
    live.kernel(|kernel| kernel.discard(&key, 2)).unwrap();
    let left: Vec<_> = made.iter().filter(|path| path.symlink_metadata().is_err()).collect();
    assert!(left.is_empty(), "strays were removed: {left:?}");
}

#[test]
fn a_stray_in_the_way_of_a_chain_is_named_before_anything_changes() {
    for (name, is_link) in [("", false), ("xdp", false), ("xdp/link", false), ("", true)] {
        let live = Live::new();
        let key = Live::key(Hook::Xdp);
        let path = live.bpffs.path().join(HOST_LINK).join(name);
        let path = if name.is_empty() { live.bpffs.path().join(HOST_LINK) } else { path };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if is_link {
            symlink(live.bpffs.path(), &path).unwrap();
        } else {
            sys::obj_pin(&map(), &path).unwrap();
        }
        let build = canopy_kernel::ChainBuild {
            key: key.clone(),
            generation: 1,
            xdp_mode: canopy_api::XdpMode::Best,
            tc_mode: canopy_api::TcMode::Best,
            members: vec![dropper("drop", Hook::Xdp, PORT)],
            together: Vec::new(),
            left_entries: Vec::new(),
        };
        let error = live.kernel(|kernel| kernel.prepare(&build)).unwrap_err();
        let KernelError::Conflict { what, remedy } = error else { panic!("{error:?}") };
        let shown = path.display().to_string();
        assert!(what.contains(&shown) && remedy.contains(&shown), "{what}; {remedy}");
        assert!(path.symlink_metadata().is_ok(), "it is left alone");
        fs::remove_file(&path).unwrap();
        live.kernel(|kernel| kernel.prepare(&build)).unwrap();
        live.switch(&key, 1, Expect::Nothing).unwrap();
    }
}

#[test]
fn a_loader_starts_and_answers_beside_strays() {
    let (pair, bpffs) = (Pair::new().unwrap(), BpffsDir::new().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let package = files::write(dir.path(), &files::starter("firewall"));
    let site = Site {
        state: dir.path().join("state"),
        bpffs: bpffs.path().to_owned(),
        packages: BTreeMap::from([("firewall@*".to_owned(), package)]),
    };
    let strays = [bpffs.path().join("eth9"), bpffs.path().join("notes")];
    for path in &strays {
        sys::obj_pin(&map(), path).unwrap();
    }
    pair.host
        .run(|| {
            let loader = Loader::start(&site, |_| {})?;
            let document = json!({ "chains": [{ "interface": HOST_LINK, "hook": "xdp",
                "programs": [{ "name": "wall", "package": "firewall" }] }] });
            loader.apply(&document).unwrap();
            drop(loader);
            let loader = Loader::start(&site, |_| {})?;
            assert_eq!(loader.engine.tick(), []);
            let reply = loader.engine.get(&GetRequest::default()).unwrap();
            assert_eq!(reply.chains[0].state, ChainState::Active);
            assert_eq!(reply.stray_pins, strays.each_ref().map(|path| path.display().to_string()));
            Ok(())
        })
        .unwrap();
}
