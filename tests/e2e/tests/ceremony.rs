//! How the policy service is begun under the shipped units: root makes the keys, another user runs the
//! service, as docs/security.md says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is the message")]

use canopy_api::endpoint::Service;
use canopy_e2e::{Answer, Machine, Who};
use canopy_test_support::wait_for;
use std::{
    process::{Child, Stdio},
    time::Duration,
};
use xtask::{dev, stack};

fn succeeded(what: &str, answer: Answer) -> String {
    assert_eq!(answer.code, 0, "{what}:\n{}\n{}", answer.out, answer.err);
    answer.out
}

struct Ceremony {
    machine: Machine,
    children: Vec<Child>,
}

impl Ceremony {
    /// Certificates and configurations as a site has them: root's, the keys of certificates the user's who
    /// runs the service.
    fn new() -> Self {
        let machine = Machine::new().unwrap();
        succeeded("config", machine.xtask(Who::User, &["config"]).unwrap());
        Self { machine, children: Vec::new() }
    }

    fn root(&self, script: &str) -> String {
        let script = script.replace("DIR", &self.machine.stack_dir().display().to_string());
        succeeded(&script, self.machine.run(Who::Root, &["sh", "-ec", &script]).unwrap())
    }

    fn program(&self, name: &str) -> String {
        self.machine.tree().join("target").join(name).display().to_string()
    }

    fn policy(&self, who: Who, arguments: &[&str]) -> Answer {
        let program = self.program("debug/canopy-policy");
        self.machine.run(who, &[&[program.as_str()], arguments].concat()).unwrap()
    }

    /// The bus server's configuration with the public keys of these.
    fn bus_for(&self, keys: &str, output: &str) {
        self.root(&format!(
            "cp DIR/config/nats-server.conf {output}
             for key in callout:issuer callout:xkey nkeys:app nkeys:callout nkeys:data nkeys:system; do
                 file=${{key%:*}}.json name=${{key#*:}}
                 script='s/.*\"'$name'\": \"\\(.*\\)\".*/\\1/p'
                 old=$(sed -n \"$script\" DIR/policy-keys/$file) new=$(sed -n \"$script\" {keys}/$file)
                 test -n \"$old\"
                 test -n \"$new\"
                 sed -i \"s|$old|$new|g\" {output}
             done
             chmod 644 {output}"
        ));
    }

    fn start(&mut self, name: &str, config: &str) {
        let program = self.program(name);
        let mut command = self.machine.command(Who::User, &program);
        command.args(["--config", config]).stdout(Stdio::null()).stderr(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }
}

impl Drop for Ceremony {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn root_makes_the_keys_and_another_user_runs_the_service() {
    let mut site = Ceremony::new();
    site.root("mkdir -p /home/etc/canopy /home/root && chmod 700 /home/root && cp DIR/pki/u-admin.crt /home/root/alice.crt");
    let keys = "/home/etc/canopy/keys";
    let said = site.policy(Who::Root, &["keys", "--owner", "canopy-user", "--output", keys]);
    assert!(said.text().unwrap().contains("the service has to run as canopy-user"), "{}", said.out);
    assert_eq!(
        site.root(&format!("stat -c '%U %a %n' {keys} {keys}/issuer.seed {keys}/callout.json")),
        format!(
            "canopy-user 755 {keys}\ncanopy-user 600 {keys}/issuer.seed\ncanopy-user 644 {keys}/callout.json\n"
        )
    );
    // Where nobody but root can look, and for a user who is not there, none are made.
    for (owner, dir, said) in [
        ("canopy-user", "/home/root/keys", "canopy-user cannot enter /home/root/keys"),
        ("nobody-at-all", "/home/etc/canopy/others", "there is no such user"),
    ] {
        let refused = site.policy(Who::Root, &["keys", "--owner", owner, "--output", dir]);
        assert_eq!(refused.code, 1, "{}", refused.out);
        assert!(refused.err.contains(said), "{}", refused.err);
        site.root(&format!("test ! -e {dir}/issuer.seed"));
    }

    // The configuration names the ceremony's keys, and the bus's names their public halves.
    site.root(&format!(
        "cd /home/etc/canopy && sed 's|DIR/policy-keys|{keys}|' DIR/config/policy.json > policy.json && \
         chmod 644 policy.json"
    ));
    site.bus_for(keys, "/home/etc/canopy/bus.conf");
    site.start("tools/nats-server", "/home/etc/canopy/bus.conf");
    site.start("debug/canopy-policy", "/home/etc/canopy/policy.json");

    // Root issues the first token: read as the service's user, written as root.
    let arguments = [
        "bootstrap",
        "--config",
        "/home/etc/canopy/policy.json",
        "--principal",
        "u-admin",
        "--certificate",
        "/home/root/alice.crt",
        "--output",
        "/home/root/alice.token",
    ];
    let issued = wait_for(Duration::from_secs(20), "a token", || {
        let answer = site.policy(Who::Root, &arguments);
        if answer.code == 0 { Ok(answer.out) } else { Err(answer.err) }
    })
    .unwrap();
    assert!(issued.contains("role admin"), "{issued}");
    assert_eq!(site.root("stat -c '%U %a' /home/root/alice.token"), "root 600\n");
    // It is believed. The rest of what alice has is hers.
    let canopy = site.program("debug/canopy");
    let listed = site.root(&format!(
        "mkdir /home/root/pki && cp DIR/pki/ca.crt DIR/pki/u-admin.* /home/root/pki/ && \
         sed -e 's|DIR/pki|/home/root/pki|' -e 's|DIR/tokens/u-admin|/home/root/alice|' \
         DIR/contexts.json > /home/root/contexts.json && chmod 600 /home/root/contexts.json && \
         {canopy} --context-file /home/root/contexts.json token list"
    ));
    assert!(listed.contains("u-admin"), "{listed}");
}

/// Keys that the service cannot read are told with the user it runs as, and the command that is told
/// corrects it.
#[test]
fn keys_of_root_are_told_with_what_gives_them_away() {
    let mut site = Ceremony::new();
    let keys = "/home/etc/keys";
    site.root("mkdir -p /home/etc");
    succeeded("keys", site.policy(Who::Root, &["keys", "--output", keys]));
    site.root(&format!("sed 's|DIR/policy-keys|{keys}|' DIR/config/policy.json > /home/etc/policy.json && chmod 644 /home/etc/policy.json"));
    site.bus_for(keys, "/home/etc/bus.conf");
    site.start("tools/nats-server", "/home/etc/bus.conf");
    let program = site.program("debug/canopy-policy");
    let place = Service::ALL.iter().position(|other| *other == Service::Policy).unwrap();
    let port = dev::ADMIN_PORT + u16::try_from(place).unwrap();
    let admin = ([127, 0, 0, 1], port).into();
    let mut told = Vec::new();
    loop {
        let mut command = site.machine.command(Who::User, &program);
        command.args(["--config", "/home/etc/policy.json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let runs = wait_for(Duration::from_secs(20), "the service to run or to end", || {
            if child.try_wait().unwrap().is_some() {
                return Ok(false);
            }
            match site.machine.netns().run(|| stack::http_get(admin, "/ready?verbose")) {
                Ok((200, _)) => Ok(true),
                other => Err(format!("{other:?}")),
            }
        });
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if runs.unwrap_or_else(|error| panic!("{error}\n{log}")) {
            break;
        }
        let said = log.lines().last().unwrap_or_default().to_owned();
        let (_, remedy) = said.split_once("; as root: ").unwrap_or_else(|| panic!("{said}"));
        let why = "it belongs to user root (0) (mode 0600), this program runs as canopy-user";
        assert!(said.contains(why), "{said}");
        assert!(remedy.starts_with("chown canopy-user /home/etc/keys/"), "{said}");
        assert!(!told.contains(&said), "it was done, and did not help: {said}");
        site.root(remedy);
        told.push(said);
    }
    // All but those that are public.
    assert_eq!(told.len(), 8, "{told:#?}");
}
