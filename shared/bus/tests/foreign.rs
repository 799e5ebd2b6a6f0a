//! Clients that are not ours, made from the reference page alone: its Python program and its
//! `nats` command lines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use canopy_api::reference::subjects_markdown;
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    python,
};
use common::{loader, raw, registry};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::Ordering,
};

/// What the page's Python program needs, at exact versions.
const PACKAGES: [&str; 2] = ["nats-py==2.16.0", "msgpack==1.2.4"];

/// The Python program of the page.
fn program() -> String {
    let page = subjects_markdown();
    let (_, rest) = page.split_once("```python\n").expect("a program on the page");
    rest.split_once("\n```").expect("its end").0.to_owned()
}

struct Python {
    program: PathBuf,
    path: PathBuf,
}

impl Python {
    fn call(&self, who: &ClientFiles, me: &str, words: [&str; 4]) -> Output {
        Command::new("python3")
            .env("PYTHONPATH", &self.path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(&self.program)
            .arg(&who.url)
            .args([&who.ca, &who.cert, &who.key])
            .arg(me)
            .args(words)
            .output()
            .unwrap()
    }

    fn reply(&self, who: &ClientFiles, me: &str, words: [&str; 4]) -> Value {
        let output = self.call(who, me, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}:\n{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn failure(&self, who: &ClientFiles, me: &str, words: [&str; 4]) -> String {
        let output = self.call(who, me, words);
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn written(dir: &Path) -> Python {
    let file = dir.join("call.py");
    std::fs::write(&file, program()).unwrap();
    Python { program: file, path: python::packages(&PACKAGES).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_program_of_the_page_works_with_json_and_messagepack() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let central = registry(&server).await;
    let python = written(server.dir());
    let (viewer, operator) = (server.client("u-viewer"), server.client("u-operator"));
    for encoding in ["json", "msgpack"] {
        let reply = python.reply(&viewer, "u-viewer", ["registry.read.list", "_", "{}", encoding]);
        assert_eq!(reply["packages"], serde_json::json!([]));
        let reply = python.reply(&viewer, "u-viewer", ["loader.read.get", "web1", "{}", encoding]);
        assert_eq!((&reply["host"], &reply["generation"]), (&"web1".into(), &7.into()));
        let applied = web1.applied.load(Ordering::SeqCst);
        let reply = python.reply(
            &operator,
            "u-operator",
            ["loader.write.apply", "web1", r#"{"document": {"chains": []}}"#, encoding],
        );
        assert_eq!(reply["host"], "web1");
        assert_eq!(web1.applied.load(Ordering::SeqCst), applied + 1);

        let said = python.failure(
            &viewer,
            "u-viewer",
            ["loader.read.get", "web1", r#"{"hook": "xpd"}"#, encoding],
        );
        assert!(said.contains("invalid: \"xpd\" is not one of xdp"), "{said}");
        let said = python.failure(&viewer, "u-viewer", ["loader.read.get", "web9", "{}", encoding]);
        assert!(said.contains("NoRespondersError"), "{said}");
    }
    central.stop().await;
    web1.stop().await;
}

/// A `nats req` line of the page.
struct Line {
    prefix: String,
    headers: BTreeMap<String, String>,
    subject: String,
    payload: String,
}

fn lines() -> Vec<Line> {
    let page = subjects_markdown().replace("\\\n", " ");
    let mut out = Vec::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("nats req ")) {
        let (options, payload) = line.split_once(" '").expect("a payload in quotes");
        let mut words = options.split_whitespace();
        let (mut prefix, mut headers, mut subject) =
            (String::new(), BTreeMap::new(), String::new());
        while let Some(word) = words.next() {
            match word {
                "--inbox-prefix" => words.next().unwrap().clone_into(&mut prefix),
                "-H" => {
                    let (name, value) = words.next().unwrap().split_once(':').unwrap();
                    headers.insert(name.to_owned(), value.to_owned());
                }
                other => other.clone_into(&mut subject),
            }
        }
        let payload = payload.strip_suffix('\'').unwrap().to_owned();
        out.push(Line { prefix, headers, subject, payload });
    }
    out
}

/// What the command line does with these words: an inbox below the prefix, the headers, the
/// payload. The server takes every line, and every one that is served here is answered well.
#[tokio::test]
async fn the_command_lines_of_the_page_are_answered() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let central = registry(&server).await;
    let answered = ["get", "apply", "list", "health", "version"];
    let lines = lines();
    assert!(lines.len() >= 15, "only {} lines on the page", lines.len());
    for (n, line) in lines.iter().enumerate() {
        let me = line.subject.rsplit('.').next().unwrap();
        let client = raw(&server, me).await;
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in &line.headers {
            headers.insert(name.as_str(), value.as_str());
        }
        let inbox = format!("{}.{n}", line.prefix);
        let answer = client.ask(&line.subject, &inbox, headers, line.payload.as_bytes()).await;
        let answer = answer.unwrap_or_else(|| panic!("{} was not answered", line.subject));
        let tokens: Vec<&str> = line.subject.split('.').collect();
        if ["loader", "registry"].contains(&tokens[3]) && answered.contains(&tokens[5]) {
            let headers = answer.headers.expect("headers");
            assert!(headers.get("Nats-Service-Error-Code").is_none(), "{}", line.subject);
            serde_json::from_slice::<Value>(&answer.payload).unwrap();
        } else {
            assert_eq!(answer.status, Some(async_nats::StatusCode::NO_RESPONDERS));
        }
    }
    central.stop().await;
    web1.stop().await;
}
