//! Publishing over the bus with the command line: by people whose role allows it, into a repository that
//! they cannot write to, and on to packets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use canopy_api::endpoint::Service;
use canopy_e2e::{INTERFACE, World};
use canopy_test_support::{pair::PEER_IP, wait_for};
use serde_json::{Value, json};
use std::{fs, thread, time::Duration};

/// Has the registry take publications for its one repository.
fn make_writable(world: &World) {
    let file = world.stack().layout().service_config(Service::Registry);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    config["repositories"][0]["writable"] = json!(true);
    let new = file.with_extension("new");
    fs::write(&new, config.to_string()).unwrap();
    fs::rename(new, file).unwrap();
}

/// A package that drops UDP packets to the world's port.
fn package(world: &World, name: &str) -> String {
    let directory = world.dir().join(name);
    world.canopy(&["package", "init", name]).unwrap().text().unwrap();
    let directory = directory.to_str().unwrap();
    let file = format!("{directory}.cpkg");
    let build = ["package", "build", directory, "--compile", "-o", &file];
    world.canopy(&build).unwrap().text().unwrap();
    file
}

#[test]
fn a_publisher_without_credentials_gets_a_package_to_packets() {
    let world = World::start().unwrap();
    let key = world.stack().layout().dir.join("signing/canopy.key");
    let key = key.to_str().unwrap();
    let publish = |role: &str, more: &[&str]| {
        let mut arguments =
            vec!["package", "publish", "--repository", "registry:dev", "--key", key];
        arguments.extend(more);
        world.canopy_as(role, &arguments).unwrap()
    };
    let file = package(&world, "dropport");
    let refused = publish("publisher", &[&file]);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.err.contains("writable: true"), "{refused:?}");

    make_writable(&world);
    wait_for(Duration::from_secs(10), "the registry has seen its file", || {
        match publish("publisher", &[&file]) {
            answer if answer.code == 0 => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .unwrap();
    let again = publish("publisher", &[&file]);
    assert!(again.text().unwrap().contains("dropport 0.1.0 is published already"), "{again:?}");
    for role in ["viewer", "operator"] {
        let refused = publish(role, &[&file]);
        assert_eq!(refused.code, 6, "{role}: {refused:?}");
    }

    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20);
    world
        .apply(&format!(
            "chains: [{{ interface: {INTERFACE}, hook: xdp, programs: \
             [{{ name: drop, package: dropport, config: {{ port: 4242 }} }}] }}]"
        ))
        .unwrap();
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 0, "packets to the port came through");

    // Three at once.
    let files = ["one", "two", "three"].map(|name| package(&world, name));
    thread::scope(|scope| {
        let running = files.each_ref().map(|file| scope.spawn(|| publish("publisher", &[file])));
        for one in running {
            let answer = one.join().unwrap();
            assert_eq!(answer.code, 0, "{answer:?}");
        }
    });
    let names = |answer: &str| -> Vec<String> { answer.lines().map(str::to_owned).collect() };
    let list = world.canopy_as("viewer", &["get", "packages", "-o", "name"]).unwrap();
    let listed = names(list.text().unwrap());
    for name in ["one@0.1.0", "two@0.1.0", "three@0.1.0", "dropport@0.1.0", "firewall@0.1.1"] {
        assert!(listed.iter().any(|found| found == name), "{name} is not in {listed:?}");
    }

    let yank = |more: &[&str]| {
        let mut arguments = vec!["package", "yank", "one@0.1.0"];
        arguments.extend(["--repository", "registry:dev", "--key", key]);
        arguments.extend(more);
        world.canopy_as("publisher", &arguments).unwrap()
    };
    assert!(yank(&[]).text().unwrap().contains("one 0.1.0 is withdrawn now"));
    let list = world.canopy_as("viewer", &["get", "packages"]).unwrap();
    assert!(list.text().unwrap().contains("0.1.0 (yanked)"), "{list:?}");
    assert!(yank(&["--undo"]).text().unwrap().contains("one 0.1.0 is offered now"));
    assert!(publish("publisher", &["--refresh-index"]).text().unwrap().contains("signed again"));
    let refused = publish("publisher", &["--rebuild-index"]);
    assert_eq!(refused.code, 8, "{refused:?}");
    let unknown = ["package", "publish", &file, "--repository", "registry:none", "--key", key];
    let refused = world.canopy_as("publisher", &unknown).unwrap();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("there is dev"), "{refused:?}");
}
