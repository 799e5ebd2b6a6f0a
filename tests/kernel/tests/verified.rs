//! A member that the verifier knows is not shown to it alone again. What it is shown is counted from
//! outside: by the system calls of the process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use canopy_kernel_tests::{
    chain::object_with,
    files,
    host::{Site, Task},
};
use canopy_package::Package;
use canopy_test_support::{
    bpffs::BpffsDir,
    pair::{HOST_LINK, Pair},
    tracee::{self, Act, End, Step},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

/// Programs that are loaded to make an XDP chain of these members (package, port) on an interface.
fn loads(members: &[(&str, Option<u16>)]) -> u32 {
    let pair = Pair::new().unwrap();
    let bpffs = BpffsDir::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |package| files::write(dir.path(), &package);
    let site = Site {
        state: dir.path().join("state"),
        bpffs: bpffs.path().to_owned(),
        packages: BTreeMap::from([
            ("port-dropper@*".to_owned(), file(files::port_dropper())),
            ("tail-calls@*".to_owned(), file(files::corpus("tail_calls", &[]))),
            ("heavy@*".to_owned(), file(heavy())),
        ]),
    };
    let programs: Vec<Value> = members
        .iter()
        .enumerate()
        .map(|(at, (package, port))| {
            let config = port.map_or_else(|| json!({}), |port| json!({ "port": port }));
            json!({ "name": format!("m{at}"), "package": package, "config": config })
        })
        .collect();
    let chain = json!({ "interface": HOST_LINK, "hook": "xdp", "programs": programs });
    let task = Task { site, document: json!({ "chains": [chain] }), more: false, profile: false };
    let mut count = 0;
    let end = pair
        .host
        .run(|| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_canopy-test-change"));
            command.arg(serde_json::to_string(&task)?).stdout(Stdio::null());
            tracee::run(&mut command, |step| {
                count += u32::from(step == Step::Call("bpf prog load"));
                Act::Go
            })
        })
        .unwrap();
    assert_eq!(end, End::Exited(0));
    count
}

/// A program that takes the verifier 150,000 instructions, and in one function with others nearly twice
/// as many.
fn heavy() -> Package {
    let mut package = files::corpus("load_order", &[]);
    package.manifest.name = "heavy".parse().unwrap();
    package.manifest.programs[0].function = "tcp_options".to_owned();
    let object = object_with("load_order", &["-DOPTIONS=8"]).to_vec();
    for bytes in package.objects.values_mut() {
        bytes.clone_from(&object);
    }
    package
}

#[test]
fn a_chain_of_heavy_members_is_loaded_in_one_try() {
    let heavy = ("heavy", None);
    assert_eq!(loads(&[heavy, heavy, heavy, heavy, heavy, heavy]), loads(&[heavy]));
}

#[test]
fn the_same_program_with_the_same_constants_is_verified_alone_once() {
    let one = ("port-dropper", Some(4001));
    // Alone, and in the chain; and what aya tries out before it attaches.
    let least = loads(&[one]);
    assert_eq!(loads(&[one, one, one]), least);
    // Other constants are another program to the verifier.
    assert_eq!(loads(&[one, ("port-dropper", Some(4002)), one]), least + 1);
    // Programs that are jumped to have to be there: three for each member, not one.
    let jumps = ("tail-calls", None);
    assert_eq!(loads(&[jumps, jumps]), least - 1 + 6);
}
