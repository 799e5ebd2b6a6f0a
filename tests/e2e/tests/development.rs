//! The parts of the development stack that worlds do not use: its network and its traffic.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use canopy_test_support::netns::Netns;
use std::process;
use xtask::{
    network::{ADDRESS, ALLOWED, BLOCKED, FLOODING, INTERFACE, Network},
    traffic::{self, Echo},
};

#[test]
fn the_network_carries_every_source_and_leaves_nothing() {
    let host = Netns::new().unwrap();
    let network = Network::new(&format!("canopy-e2e-{}", process::id()));
    let result = host.run(|| {
        assert!(network.leftovers().is_empty());
        network.make()?;
        assert!(network.exists());
        // A second time from whatever is there.
        network.make()?;
        let echo = Echo::start()?;
        assert_eq!(echo.address().ip().to_string(), ADDRESS);
        for source in [ALLOWED, BLOCKED, FLOODING] {
            let address = echo.address();
            let sent = std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let file = std::fs::File::open(network.file())?;
                        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
                        traffic::send_here(source, address, 50, 1000)
                    })
                    .join()
                    .unwrap()
            })?;
            assert_eq!((sent.sent, sent.replies), (50, 50), "{source}");
        }
        Ok(())
    });
    host.run(|| network.remove()).unwrap();
    result.unwrap();
    assert!(host.run(|| Ok(network.leftovers())).unwrap().is_empty());
}

#[test]
fn a_network_that_this_machine_uses_is_not_taken() {
    let host = Netns::new().unwrap();
    let network = Network::new(&format!("canopy-e2e-used-{}", process::id()));
    host.exec(&["ip", "link", "add", "mine", "type", "veth", "peer", "other"]).unwrap();
    host.exec(&["ip", "address", "add", "198.18.0.9/24", "dev", "mine"]).unwrap();
    host.exec(&["ip", "link", "set", "mine", "up"]).unwrap();
    let error = host.run(|| network.make()).unwrap_err().to_string();
    assert!(error.contains("198.18.0.0/24") && error.contains("mine"), "{error}");
    assert!(host.exec(&["ip", "link", "show", INTERFACE]).is_err());
    host.run(|| network.remove()).unwrap();
}
