//! `docs/packaging.md` is followed to the letter, from an empty directory to packets that are dropped:
//! its files are written and its commands run, in their order.
//!
//! A block with a file's name behind its language is that file; an `sh` block is run; other blocks are
//! shown only.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use canopy_api::endpoint::Service;
use canopy_e2e::{INTERFACE, World};
use canopy_test_support::{nats::private_file, pair::PEER_IP, repository, wait_for};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use xtask::compile;

/// A block of the page: its language, the file it is, its text.
#[derive(Debug)]
struct Block {
    language: String,
    file: Option<String>,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let mut words = info.split(' ');
                let language = words.next().unwrap_or_default().to_owned();
                let file = words.next().map(str::to_owned);
                open = Some(Block { language, file, text: String::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => writeln!(block.text, "{line}").unwrap(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// Follows the page.
struct Author<'a> {
    world: &'a World,
    /// Where nothing is at first.
    home: PathBuf,
    commands: PathBuf,
    /// Where the last command left off.
    directory: PathBuf,
}

impl<'a> Author<'a> {
    fn new(world: &'a World) -> Self {
        let home = world.dir().join("author");
        fs::create_dir(&home).unwrap();
        let commands = world.dir().join("commands");
        fs::create_dir(&commands).unwrap();
        let canopy = compile::binary("canopy").unwrap();
        std::os::unix::fs::symlink(canopy, commands.join("canopy")).unwrap();
        Self { world, directory: home.clone(), home, commands }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.join(file), text).unwrap();
    }

    fn run(&mut self, script: &str) {
        let place = self.world.dir().join("place");
        let script = format!("set -eu\n{script}\npwd > {}\n", place.display());
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("bash");
        command
            .arg("-c")
            .arg(&script)
            .current_dir(&self.directory)
            .env("PATH", format!("{}:{path}", self.commands.display()))
            .env("HOME", &self.home)
            .env("CANOPY_CONFIG", self.world.stack().layout().contexts());
        let output = self.world.inside(|_| Ok(command.output()?)).unwrap();
        assert!(
            output.status.success(),
            "{script}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        self.directory = fs::read_to_string(place).unwrap().trim().into();
    }
}

/// The service's configuration with these fields instead of its own.
fn changed(world: &World, service: Service, fields: &Value) -> String {
    let file = world.stack().layout().service_config(service);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    config.to_string()
}

/// Replaces a file at once: a service may be looking.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_new_author_who_follows_the_page_gets_an_applied_package() {
    let world = World::start().unwrap();
    let page = fs::read_to_string(repository().join("docs/packaging.md")).unwrap();
    let mut author = Author::new(&world);
    let repository = world.dir().join("packages");
    let secrets = world.dir().join("secrets");
    fs::create_dir(&secrets).unwrap();
    private_file(&secrets.join("s3.json"), r#"{"access_key_id": "a", "secret_access_key": "s"}"#)
        .unwrap();
    private_file(&secrets.join("azure.json"), r#"{"account_key": "a2V5"}"#).unwrap();
    let mut configured = Vec::new();
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20, "nothing drops yet");

    for block in blocks(&page) {
        // What is somebody's own: places, keys, names.
        let mut text = block
            .text
            .replace("/srv/canopy/packages", repository.to_str().unwrap())
            .replace("/etc/canopy", secrets.to_str().unwrap())
            .replace("eth0", INTERFACE)
            .replace("port: 5353", "port: 4242");
        if text.contains("RW…") {
            let public = fs::read_to_string(author.home.join("keys/canopy.pub")).unwrap();
            text = text.replace("RW…", public.lines().nth(1).unwrap());
        }
        match (block.language.as_str(), block.file.as_deref()) {
            ("sh", None) => author.run(&text),
            ("json", Some(file @ ("registry.json" | "loader.json"))) => {
                let service =
                    if file == "registry.json" { Service::Registry } else { Service::Loader };
                let config = changed(&world, service, &serde_json::from_str(&text).unwrap());
                author.write(file, &config);
                author.run(&format!(
                    "{} --check --config {file}",
                    compile::binary(format!("canopy-{service}")).unwrap().display()
                ));
                // Of several ways, the first is the author's.
                if configured.contains(&service) {
                    continue;
                }
                configured.push(service);
                replace(&world.stack().layout().service_config(service), &config);
                if service == Service::Registry {
                    wait_for(Duration::from_secs(10), "the registry has seen its file", || {
                        let up = "canopy_registry_repository_up";
                        match world.metric(service, up, &[("repository", "mine")]) {
                            Ok(1.0) => Ok(()),
                            other => Err(format!("{other:?}")),
                        }
                    })
                    .unwrap();
                } else {
                    world.stack().process(service).stop().unwrap();
                    world
                        .inside(|stack| {
                            stack.start_service(service)?;
                            stack.wait_ready(service)
                        })
                        .unwrap();
                }
            }
            (_, Some(file)) => author.write(file, &text),
            (_, None) => {}
        }
    }

    assert_eq!(configured, [Service::Registry, Service::Loader]);
    let program = world.program("mdns").unwrap();
    assert_eq!((program.package.as_str(), program.version.as_str()), ("dropport", "0.1.0"));
    assert_eq!(program.variant.unwrap().object, "dropport-loop.bpf.o", "this kernel has bpf_loop");
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 0, "packets to the port came through");
    let dropped = world.program("mdns").unwrap();
    let dropped = dropped.metrics.iter().find(|metric| metric.name == "dropped").unwrap();
    assert!((dropped.value - 20.0).abs() < 0.5, "{dropped:?}");
}
