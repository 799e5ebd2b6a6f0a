//! What a person is told about a document that cannot be used: whole messages, so that every change of
//! words is seen, and none is a library's.

use canopy_api::document::{self, Format};
use std::fmt::Write as _;

/// A chain of this interface, without programs.
fn chain(interface: &str) -> String {
    format!("chains:\n- interface: {interface}\n  hook: xdp\n  programs: []\n")
}

/// A program of a chain, with one more field.
fn program(field: &str) -> String {
    format!(
        "chains:\n- interface: eth0\n  hook: xdp\n  programs:\n  - name: a\n    package: p\n    {field}\n"
    )
}

/// Every case: a name, the text, how it is written.
#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(String, String, Format)> {
    use Format::{Json, Yaml};
    let mut cases = Vec::new();
    let mut add = |name: &str, text: String, format| cases.push((name.to_owned(), text, format));
    // Words that YAML does not read as texts, where a text is wanted.
    for word in [
        "on",
        "off",
        "yes",
        "no",
        "y",
        "n",
        "On",
        "true",
        "null",
        "~",
        "",
        "1.10",
        "0x10",
        "1_000",
        "012",
        "1e3",
        "7",
        "-1",
        ".5",
        ".inf",
        "2026-01-31",
        "12:30",
    ] {
        add(
            &format!("name: {word}"),
            program(&format!("name: {word}")).replace("name: a\n    ", ""),
            Yaml,
        );
        add(&format!("interface: {word}"), chain(word), Yaml);
    }
    // The same where a whole number is wanted.
    for word in [
        "on",
        "1.10",
        "0x10",
        "1_000",
        "012",
        "0012",
        "-012",
        "1e3",
        "1.0",
        "1.5",
        "~",
        "\"7\"",
        "7.",
        "99999999999999999999",
        "70000",
        "-1",
        "2026-01-31",
        "seven",
        "[1]",
    ] {
        add(&format!("priority: {word}"), program(&format!("priority: {word}")), Yaml);
    }
    for word in ["1e3", "1.0", "1.5", "\"7\"", "null", "true", "99999999999999999999", "1e999"] {
        let text = format!(
            "{{\"chains\": [{{\"interface\": \"eth0\", \"hook\": \"xdp\", \"programs\": [{{\"name\": \"a\", \"package\": \"p\", \"priority\": {word}}}]}}]}}"
        );
        add(&format!("priority: {word} in JSON"), text, Json);
    }
    // The same where a word of a list is wanted.
    for word in ["on", "off", "1.5", "~", "[xdp]", "XDP", "tc"] {
        add(&format!("hook: {word}"), chain("eth0").replace("xdp", word), Yaml);
    }
    // Package requirements.
    for word in
        ["p@", "p@^x", "p@1.10", "p@1.2.3.4", "p@latest", "P@1", "1.10", "p@>=1,<x", "p @1", "@1"]
    {
        add(
            &format!("package: {word}"),
            program("").replace("package: p", &format!("package: \"{word}\"")),
            Yaml,
        );
    }
    // Placeholders.
    for word in [
        "${IFACE}",
        "$IFACE",
        "eth${N}",
        "${IFACE:-eth0}",
        "$(cat iface)",
        "\"{{ iface }}\"",
        "{{ iface }}",
        "<interface>",
        "$5",
        "a$b",
    ] {
        add(&format!("interface: {word}"), chain(word), Yaml);
    }
    add(
        "a placeholder within braces",
        "chains: [{interface: ${IFACE}, hook: xdp, programs: []}]\n".into(),
        Yaml,
    );
    add("a placeholder as a namespace", chain("eth0\n  netns: ${NS}"), Yaml);
    add(
        "a placeholder as a setting",
        program("config: {rate: '${RATE}', list: ['${A}', 'x${B}']}"),
        Yaml,
    );
    add(
        "a placeholder as the name of a setting",
        program("config: {'${NAME}': 1, '<name>': 2, rate: '<rate>'}"),
        Yaml,
    );
    add(
        "a placeholder as a package",
        program("").replace("package: p", "package: p@${VERSION}"),
        Yaml,
    );
    // What is no YAML.
    for (name, text) in [
        ("empty", ""),
        ("blank", " \n\n"),
        ("a comment", "# x\n"),
        ("a list", "- a\n"),
        ("a text", "acceptable\n"),
        ("a tab", "chains:\n\t- interface: eth0\n"),
        ("a tab later", "chains: []\n\tx: 1\n"),
        ("acceptable", "chains: []\nacceptable\n"),
        ("acceptable: twice", "chains: []\nacceptable: [1, 2\n"),
        ("a table", "chains: []\ntable: a: b\n"),
        ("open list", "chains: [\n"),
        ("open fields", "chains: [{interface: eth0\n"),
        ("wrong bracket", "chains: [}\n"),
        ("closed only", "chains: ]\n"),
        ("open quote", "chains: \"x\n"),
        ("open quote, single", "chains: 'x\n"),
        ("text behind quotes", "chains: \"x\" y\n"),
        ("at sign", "chains: @x\n"),
        ("backquote", "chains: `x`\n"),
        ("percent", "%x\nchains: []\n"),
        ("alias of nothing", "chains: *x\n"),
        ("star", "interface: *\n"),
        ("glob without quotes", "chains:\n- interface: *eth\n"),
        ("two colons", "chains: a: b\n"),
        ("colon without a space", "chains:[]\n"),
        ("no space behind the dash", "chains:\n-interface: eth0\n"),
        ("list on the line of its name", "chains: - a\n"),
        ("dash within brackets", "chains: [- a]\n"),
        ("wrong indentation", "chains:\n  - interface: eth0\n   hook: xdp\n"),
        ("less indentation", "chains:\n    - interface: eth0\n  hook: xdp\n"),
        ("field without a value", "chains:\n- interface\n  hook: xdp\n"),
        ("escape", "chains: \"\\d\"\n"),
        ("comment without a space", "chains: \"x\"#y\n"),
        ("unknown tag", "chains: !ref x\n"),
        ("tag of a list", "chains: !set [a]\n"),
        ("wrong tag", "chains: !!int x\n"),
        ("list as a name", "[a]: b\n"),
        ("merge of nothing", "<<: 7\n"),
        ("alias within itself", "chains: &a [*a]\n"),
        ("two documents", "chains: []\n---\nchains: []\n"),
        ("missing separator", "chains: []\n...\nx\n...\ny\n"),
        ("field twice", "chains: []\nchains: []\n"),
        (
            "field twice, deep",
            "chains:\n- interface: eth0\n  hook: xdp\n  interface: eth1\n  programs: []\n  hook: xdp\n",
        ),
        ("field twice on a line", "chains: [{hook: xdp, hook: xdp}]\n"),
        ("byte order mark within", "chains: []\n\u{feff}x: 1\n"),
        ("control character", "chains: \u{1}\n"),
        ("two placeholders", "chains: {{a}}: b\n"),
        ("comma in a list", "chains: [a,, b]\n"),
        ("text before a list", "chains: [a b: c\n  d: e]\n"),
        ("block text", "chains: |\n    a\n  b\n"),
        ("JSON in YAML", "{\"chains\": [,]}\n"),
    ] {
        add(name, text.to_owned(), Yaml);
    }
    for (name, text) in [
        ("open list", "{\"chains\": ["),
        ("open fields", "{\"chains\": []"),
        ("open text", "{\"chains"),
        ("nothing behind the colon", "{\"chains\":"),
        ("comma too many", "{\"chains\": [1,]}"),
        ("comma too many in fields", "{\"chains\": [],}"),
        ("comma missing", "{\"chains\": [] \"x\": 1}"),
        ("colon missing", "{\"chains\" []}"),
        ("name without quotes", "{chains: []}"),
        ("single quotes", "{'chains': []}"),
        ("comment", "{\"chains\": [] // x\n}"),
        ("escape", "{\"chains\": \"\\d\"}"),
        ("line break in a text", "{\"chains\": \"a\nb\"}"),
        ("number", "{\"chains\": 01}"),
        ("word", "{\"chains\": nul}"),
        ("word of Python", "{\"chains\": None}"),
        ("behind the document", "{\"chains\": []} x"),
        ("two documents", "{\"chains\": []}\n{\"chains\": []}"),
        ("field twice", "{\n  \"chains\": [],\n  \"chains\": []\n}"),
        ("number too large", "{\"chains\": 1e999}"),
    ] {
        add(&format!("JSON: {name}"), text.to_owned(), Json);
    }
    cases
}

fn told(text: &str, format: Format) -> String {
    let checked = document::document(text, format).and_then(document::Document::check_desired);
    match checked {
        Ok(_) => "fine".to_owned(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn every_bad_document_is_told_in_our_own_words() {
    let mut all = String::new();
    for (name, text, format) in cases() {
        let _ = writeln!(all, "## {name}\n{}\n", told(&text, format));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_documents.txt");
    if std::env::var_os("CANOPY_BLESS").is_some() {
        std::fs::write(path, &all).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (ours, theirs) in all.split("\n## ").zip(expected.split("\n## ")) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(all.len(), expected.len());
    // What gives a library away.
    for text in [
        "expected ",
        "EOF",
        "flow ",
        "scalar",
        "mapping",
        "sequence",
        "untagged",
        "invalid type",
        "recursion",
        "serde",
        "while parsing",
        "docs.rs",
        ": : ",
    ] {
        let line = all.lines().find(|line| !line.starts_with('#') && line.contains(text));
        let ours = ["is expected here", "not expected", "is; a", "a ',' or"];
        let line = line.filter(|line| !ours.iter().any(|own| line.contains(own)));
        assert_eq!(line, None, "{text:?} is a library's word");
    }
}
