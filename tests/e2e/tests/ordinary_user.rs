//! The development stack as an ordinary user with sudo brings it up, and as root, one after the other, and
//! after everything was killed.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use canopy_api::endpoint::Service;
use canopy_e2e::{Answer, Machine, Who};
use canopy_test_support::wait_for;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    process::{self, Stdio},
    time::Duration,
};
use xtask::{dev, paths, running, stack};

/// The XDP program on the demonstration's interface, as `ip` sees it.
fn attached(machine: &Machine) -> String {
    let shown = machine.netns().exec(&["ip", "-details", "link", "show", "cpy0"]).unwrap();
    let program = shown.split("prog/xdp id ").nth(1).unwrap_or_default();
    program.split_whitespace().next().unwrap_or_default().to_owned()
}

fn succeeded(what: &str, answer: &Answer) {
    assert_eq!(answer.code, 0, "{what}:\n{}\n{}", answer.out, answer.err);
}

/// What root sees in the stack's directory: owner and mode of a file.
fn owner(machine: &Machine, file: &str) -> String {
    let file = machine.stack_dir().join(file).display().to_string();
    machine.run(Who::Root, &["stat", "-c", "%u %a", &file]).unwrap().out.trim().to_owned()
}

/// Nothing of a stack is left: not its processes, interface, namespace or pins.
fn nothing_is_left(machine: &Machine) {
    assert_eq!(running::of(&machine.stack_dir()), []);
    assert!(machine.netns().exec(&["ip", "link", "show", "cpy0"]).is_err());
    let left = machine.run(Who::Root, &["ls", "-A", "/sys/fs/bpf", "/run/netns"]).unwrap();
    assert!(left.out.starts_with("/run/netns:\n\n/sys/fs/bpf:\n"), "{}{}", left.out, left.err);
    assert!(!left.out.contains("canopy"), "{}", left.out);
}

#[test]
fn the_demo_runs_as_a_user_with_sudo_and_as_root_in_any_order() {
    let machine = Machine::new().unwrap();
    let full = std::env::var_os("CANOPY_TEST_FULL").is_some();
    // The ports that are taken otherwise are somebody else's already.
    let taken = [14_222, 19_102]
        .map(|port| machine.netns().run(|| Ok(TcpListener::bind(("127.0.0.1", port))?)).unwrap());
    let demo = machine.xtask(Who::User, &["demo"]).unwrap();
    succeeded("demo as a user", &demo);
    for said in ["answered      0 (", "limited=", "restored 1 time(s)", "The stack is up"] {
        assert!(demo.out.contains(said), "{said}: {}", demo.out);
    }
    drop(taken);
    // What runs as root has a key that is root's; everything else is the user's.
    assert_eq!(owner(&machine, "pki/h-dev-loader.key"), "0 600");
    assert_eq!(owner(&machine, "pki/s-policy.key"), "64321 600");
    let mut users: Vec<(String, String)> = running::of(&machine.stack_dir())
        .into_iter()
        .map(|one| {
            let status = fs::read_to_string(format!("/proc/{}/status", one.pid)).unwrap();
            let user = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
            (one.name, user.split('\t').next().unwrap().to_owned())
        })
        .collect();
    users.sort();
    let expected = [
        ("canopy-cert-monitor", "64321"),
        ("canopy-enforcer", "0"),
        ("canopy-loader", "0"),
        ("canopy-policy", "64321"),
        ("canopy-registry", "64321"),
        ("nats-server", "64321"),
    ];
    assert_eq!(users, expected.map(|(name, user)| (name.to_owned(), user.to_owned())));

    // Another work tree, and another command at the same time, are refused before anything changes.
    let program = attached(&machine);
    let other = machine.tree().parent().unwrap().join("other");
    let named = format!("another work tree, {}, runs", machine.tree().display());
    for who in [Who::User, Who::Root] {
        for task in ["up", "demo", "down"] {
            let refused = machine.xtask_of(&other, who, &[task]).unwrap();
            assert_eq!(refused.code, 1, "{task}: {}", refused.out);
            assert!(refused.err.contains(&named), "{task}: {}", refused.err);
        }
    }
    let refused = machine
        .netns()
        .run(|| {
            let _at_work = dev::lock()?;
            machine.xtask(Who::User, &["down"])
        })
        .unwrap();
    assert_eq!(refused.code, 1, "{}", refused.out);
    let holder = format!("process {} of user 0", process::id());
    assert!(refused.err.contains(&holder), "{}", refused.err);
    assert_eq!(running::of(&machine.stack_dir()).len(), 6);
    assert_eq!(attached(&machine), program);

    // Everything dies; one process id is somebody else's now, and one was never written down.
    machine.kill_everything().unwrap();
    let run = |file: &str| machine.stack_dir().join("run").join(file).display().to_string();
    let stale = format!("echo {} 1 > {}", process::id(), run("canopy-policy.pid"));
    let forgotten = format!("{stale}; rm {}", run("canopy-loader.pid"));
    succeeded("stale", &machine.run(Who::User, &["sh", "-c", &forgotten]).unwrap());
    assert_eq!(attached(&machine), program, "the kernel keeps what is pinned");

    // Root after a user, and the user after root.
    succeeded("up as root", &machine.xtask(Who::Root, &["up"]).unwrap());
    assert_eq!(attached(&machine), program);
    assert_eq!(owner(&machine, "pki/s-policy.key"), "0 600");
    // A second time while it runs.
    succeeded("up again", &machine.xtask(Who::Root, &["up"]).unwrap());
    succeeded("down as a user", &machine.xtask(Who::User, &["down"]).unwrap());
    assert_eq!(owner(&machine, "pki/s-policy.key"), "64321 600");
    nothing_is_left(&machine);
    succeeded("down of nothing", &machine.xtask(Who::User, &["down"]).unwrap());
    if full {
        succeeded("up as a user", &machine.xtask(Who::User, &["up"]).unwrap());
        machine.kill_everything().unwrap();
        succeeded("down of what was killed", &machine.xtask(Who::Root, &["down"]).unwrap());
        nothing_is_left(&machine);
        for who in [Who::Root, Who::User, Who::User, Who::Root] {
            succeeded("demo", &machine.xtask(who, &["demo"]).unwrap());
            machine.kill_everything().unwrap();
        }
        succeeded("demo", &machine.xtask(Who::User, &["demo"]).unwrap());
        succeeded("down", &machine.xtask(Who::Root, &["down"]).unwrap());
        nothing_is_left(&machine);
    }
}

/// What is missing is told before anything changes.
#[test]
fn what_the_demo_lacks_is_told_with_what_to_do() {
    let machine = Machine::new().unwrap();
    let refused = |what: &str, who: Who, said: &[&str]| {
        for task in ["demo", "up", "down"] {
            let answer = machine.xtask(who, &[task]).unwrap();
            assert_eq!(answer.code, 1, "{what}, {task}: {}", answer.out);
            for said in said {
                assert!(answer.err.contains(said), "{what}, {task}: {said}: {}", answer.err);
            }
            assert_eq!(answer.err.trim().lines().count(), 1, "{what}, {task}: {}", answer.err);
        }
        nothing_is_left(&machine);
        let dir = machine.stack_dir().display().to_string();
        assert_eq!(machine.run(Who::Root, &["test", "-e", &dir]).unwrap().code, 1);
    };
    let root = |script: &str| {
        let done = machine.run(Who::Root, &["sh", "-ec", script]).unwrap();
        succeeded(script, &done);
    };
    // Of several rules one wants a password: the commands work all the same.
    root("echo '%canopy-user ALL=(ALL:ALL) ALL' > /etc/sudoers.d/a-group");
    succeeded("one rule of two", &machine.xtask(Who::User, &["down"]).unwrap());

    root("rm /etc/sudoers.d/canopy-user");
    refused(
        "a password",
        Who::User,
        &["sudo wants a password", "run this in a terminal", "as root"],
    );
    root("rm /etc/sudoers.d/a-group");
    refused("not in sudoers", Who::User, &["sudo wants a password", "as root"]);
    root("mount --bind /dev/null /usr/bin/sudo");
    refused("no sudo", Who::User, &["there is no sudo here", "run this as root"]);
}

/// A container of `docker-compose.yml`, as far as it says who reads the stack's directory.
#[derive(Debug, Deserialize)]
struct Container {
    command: Option<Vec<String>>,
    user: Option<String>,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    cap_add: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Compose {
    services: BTreeMap<String, Container>,
}

/// What a container engine gives to root unless it is told otherwise.
const ENGINE_GIVES: &str = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,\
                            net_raw,sys_chroot,mknod,audit_write,setfcap";

/// Every container of the compose file starts as its user, with its capabilities, from a directory that an
/// ordinary user made.
#[test]
fn the_containers_start_from_a_users_directory() {
    let machine = Machine::new().unwrap();
    succeeded("config", &machine.xtask(Who::User, &["config"]).unwrap());
    let dir = machine.stack_dir();
    let env = dir.join("compose.env").display().to_string();
    let env = machine.run(Who::User, &["cat", &env]).unwrap();
    let filled = |text: &str| {
        let mut text = text.to_owned();
        for line in env.text().unwrap().lines() {
            let (name, value) = line.split_once('=').unwrap();
            while let Some(at) = text.find(&format!("${{{name}")) {
                let end = at + text[at..].find('}').unwrap();
                text.replace_range(at..=end, value);
            }
        }
        assert!(!text.contains('$'), "{text}");
        text
    };
    let file = paths::workspace().join("docker-compose.yml");
    let compose: Compose = serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let start = |name: &str| {
        let container = &compose.services[name];
        let command: Vec<String> =
            container.command.iter().flatten().map(|word| filled(word)).collect();
        let user = filled(container.user.as_deref().unwrap_or("0:0"));
        let (user, group) = user.split_once(':').unwrap();
        // Only root is given capabilities.
        let mut given: Vec<String> = match (user, container.cap_drop.as_slice()) {
            ("0", []) => ENGINE_GIVES.split(',').map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        given.extend(container.cap_add.iter().map(|name| name.to_lowercase()));
        let set = given.iter().fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
        let target = machine.tree().join("target");
        let (program, arguments) = match name {
            "nats" => (target.join("tools/nats-server"), command.as_slice()),
            _ => (target.join("debug").join(&command[0]), &command[1..]),
        };
        let mut process = machine.command(Who::Root, "setpriv");
        process.args(["--reuid", user, "--regid", group, "--clear-groups"]);
        process.args(["--inh-caps", &set, "--bounding-set", &set]).arg(program).args(arguments);
        process.stdout(Stdio::null()).stderr(Stdio::piped());
        process.spawn().unwrap()
    };
    let mut bus = start("nats");
    let mut policy = start("policy");
    let mut others: Vec<_> = Service::ALL
        .into_iter()
        .filter(|service| *service != Service::Policy)
        .map(|service| start(service.as_str()))
        .collect();
    // Until there are tokens the host's daemons are refused, and try on.
    let ready = |service: Service| {
        let place = Service::ALL.iter().position(|other| *other == service).unwrap();
        let port = dev::ADMIN_PORT + u16::try_from(place).unwrap();
        wait_for(Duration::from_secs(20), &format!("{service} is ready"), || {
            let asked = machine
                .netns()
                .run(|| stack::http_get(([127, 0, 0, 1], port).into(), "/ready?verbose"));
            match asked {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap();
    };
    ready(Service::Policy);
    succeeded("tokens", &machine.xtask(Who::User, &["tokens"]).unwrap());
    for service in Service::ALL {
        ready(service);
    }
    // What containers made goes with the rest.
    succeeded("down", &machine.xtask(Who::User, &["down"]).unwrap());
    for process in [&mut bus, &mut policy].into_iter().chain(&mut others) {
        process.wait().unwrap();
    }
    nothing_is_left(&machine);
}
