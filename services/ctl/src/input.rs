//! Documents from files and standard input, checked before anything is sent.

use crate::failure::{Exit, Failure};
use canopy_api::{
    DesiredState, HostId, Problem,
    document::{self, Document},
    wire::{MapEntry, MapName, MapWrite},
};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    rc::Rc,
};

/// A document of this many bytes is refused: far more than any host's chains need.
const LIMIT: u64 = 4 << 20;
/// How a loader's message ends where a setting is to be a text: only that becomes right by quotes.
const WANT_TEXT: [&str; 4] =
    ["is not text", "is not a duration", "is not a MAC address", "is not an IPv4 or IPv6 prefix"];

/// One or more documents put together, and where each chain came from.
#[derive(Debug)]
pub struct Input {
    /// The whole, for the request.
    pub document: Value,
    /// The same, checked.
    pub desired: DesiredState,
    /// For chain i of the whole: where it stands, its number there, and how it was written.
    origins: Vec<(String, usize, Rc<Document>)>,
}

impl Input {
    /// Reads and checks; every mistake of every document of every file at once.
    pub fn read(files: &[PathBuf]) -> Result<Self, Failure> {
        let mut texts = Vec::new();
        for path in files {
            texts.push(read(path)?);
        }
        Self::combine(texts)
    }

    fn combine(texts: Vec<(String, String, document::Format)>) -> Result<Self, Failure> {
        let mut whole = Vec::new();
        let mut desired = DesiredState::default();
        let mut origins: Vec<(String, usize, Rc<Document>)> = Vec::new();
        let mut seen = BTreeMap::new();
        let mut problems = Vec::new();
        let mut told = |name: &str, bad| problems.extend(Failure::in_file(name, bad).problems);
        for (file, text, format) in texts {
            let documents = match document::documents(&text, format) {
                Ok(documents) => documents,
                Err(bad) => {
                    told(&file, bad);
                    continue;
                }
            };
            let several = documents.len() > 1;
            for (number, document) in documents.into_iter().enumerate() {
                let name = if several {
                    format!("{file} (document {}, line {})", number + 1, document.line())
                } else {
                    file.clone()
                };
                let state = match document.clone().check_desired() {
                    Ok(state) => state,
                    Err(bad) => {
                        told(&name, bad);
                        continue;
                    }
                };
                let document = Rc::new(document);
                for (i, chain) in state.chains.iter().enumerate() {
                    if let Some((other, n)) = seen.insert(chain.target(), (name.clone(), i))
                        && other != name
                    {
                        let message = format!(
                            "{} is already described by {other}: chains[{n}]",
                            chain.target()
                        );
                        let problem = Problem::new(format!("chains[{i}]"), message)
                            .remedy("merge the two: a chain is replaced as a whole");
                        told(&name, problem.into());
                    }
                    origins.push((name.clone(), i, Rc::clone(&document)));
                }
                if let Some(Value::Array(chains)) = document.value().get("chains") {
                    whole.extend(chains.iter().cloned());
                }
                desired.chains.extend(state.chains);
            }
        }
        if !problems.is_empty() {
            return Err(Failure { exit: Exit::Invalid, problems });
        }
        let document = serde_json::json!({ "chains": whole });
        Ok(Self { document, desired, origins })
    }

    /// Puts the file's name and its own numbering into the paths of a service's answer, and how the value
    /// there was written where YAML made something else of it.
    pub fn locate(&self, mut failure: Failure) -> Failure {
        for problem in &mut failure.problems {
            let path = problem.path.strip_prefix("document.").unwrap_or(&problem.path);
            let found = path.strip_prefix("chains[").and_then(|rest| {
                let (number, rest) = rest.split_once(']')?;
                let (file, n, document) = self.origins.get(number.parse::<usize>().ok()?)?;
                let own = format!("chains[{n}]{rest}");
                let written = document.written(&own).map(str::to_owned);
                Some((format!("{file}: {own}"), written))
            });
            if let Some((found, written)) = found {
                problem.path = found;
                let wants_text = WANT_TEXT.iter().any(|end| problem.message.ends_with(end));
                if let Some(written) = written.filter(|written| !written.is_empty() && wants_text) {
                    let hint = format!(
                        "it is written {written}, which YAML does not read as a text: \"{written}\" in quotes is one"
                    );
                    problem.remedy = Some(hint);
                }
            }
        }
        failure
    }
}

/// What `map dump -o json` and `-o yaml` print.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DumpedMap {
    /// The host.
    #[serde(rename = "host")]
    _host: HostId,
    /// The map, which may be another one.
    #[serde(rename = "map")]
    _map: MapName,
    /// The chain's generation.
    #[serde(rename = "generation")]
    _generation: u64,
    /// The entries.
    entries: Vec<MapEntry>,
}

/// Entries to write, of a file that holds a list of them or what `map dump` prints; every mistake at once.
pub fn map_entries(path: &Path) -> Result<Vec<MapWrite>, Failure> {
    let (name, text, format) = read(path)?;
    let checked = document::document(&text, format).and_then(|document| {
        if !document.value().is_object() {
            return document.check();
        }
        let dumped: DumpedMap = document.check()?;
        let written = |MapEntry { key, value, cpus, sum: _ }| MapWrite { key, value, cpus };
        Ok(dumped.entries.into_iter().map(written).collect())
    });
    checked.map_err(|problems| Failure::in_file(&name, problems))
}

/// A document and its file's display name; what the schema says is checked.
pub fn document<T: JsonSchema + DeserializeOwned + 'static>(
    path: &Path,
) -> Result<(String, T), Failure> {
    let (name, text, format) = read(path)?;
    let loaded =
        document::load(&text, format).map_err(|problems| Failure::in_file(&name, problems));
    Ok((name, loaded?))
}

/// A file's display name, text and format.
fn read(path: &Path) -> Result<(String, String, document::Format), Failure> {
    let stdin = path == Path::new("-");
    let name = if stdin { "(standard input)".to_owned() } else { path.display().to_string() };
    if !stdin && path.is_dir() {
        return Err(Failure::new(Exit::Invalid, format!("{name} is a directory"))
            .fix(format!("name the files: -f {name}/*.yaml")));
    }
    let mut bytes = Vec::new();
    let outcome = if stdin {
        std::io::stdin().lock().take(LIMIT + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes))
    };
    outcome.map_err(|error| Failure::io("read", path, &error))?;
    if bytes.len() as u64 > LIMIT {
        return Err(Failure::new(Exit::Invalid, format!("the document is over {LIMIT} bytes"))
            .at(name)
            .fix("is it the right file? a document lists chains, not objects"));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::new(Exit::Invalid, "not text: a document is YAML or JSON in UTF-8").at(&name)
    })?;
    let format = document::Format::of(path).unwrap_or_else(|| guess(&text));
    Ok((name, text, format))
}

/// JSON documents start with a brace or a bracket; anything else is read as YAML.
fn guess(text: &str) -> document::Format {
    if text.trim_start().starts_with(['{', '[']) {
        document::Format::Json
    } else {
        document::Format::Yaml
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::document::Format::{Json, Yaml};

    fn combine(texts: &[(&str, &str, document::Format)]) -> Result<Input, Failure> {
        Input::combine(texts.iter().map(|(n, t, f)| ((*n).into(), (*t).into(), *f)).collect())
    }

    const A: &str = "chains: [{interface: eth0, hook: xdp, programs: [{name: a, package: p}]}]";
    const B: &str = r#"{"chains": [{"interface": "eth1", "hook": "tc-ingress", "programs": []}]}"#;

    #[test]
    fn files_are_put_together_and_answers_find_their_way_back() {
        let input = combine(&[("a.yaml", A, Yaml), ("b.json", B, Json)]).unwrap();
        assert_eq!(input.desired.chains.len(), 2);
        assert_eq!(input.document["chains"][1]["interface"], "eth1");
        for path in ["chains[1].interface", "document.chains[1].interface"] {
            let failure = Failure::new(Exit::NotFound, "there is no interface \"eth1\"").at(path);
            assert_eq!(input.locate(failure).problems[0].path, "b.json: chains[0].interface");
        }
        let elsewhere = Failure::new(Exit::Conflict, "x").at("expected_generation");
        assert_eq!(input.locate(elsewhere).problems[0].path, "expected_generation");
    }

    #[test]
    fn a_dumped_map_is_a_file_of_entries() {
        let dir = tempfile::tempdir().unwrap();
        let entries = |text: &str| {
            let path = dir.path().join("map.json");
            std::fs::write(&path, text).unwrap();
            map_entries(&path)
        };
        let dumped = r#"{"host": "web1", "generation": 4,
            "map": {"interface": "eth0", "hook": "xdp", "program": "p", "map": "m"},
            "entries": [{"key": "10.0.0.1", "value": 1}, {"key": 2, "cpus": [1, 2], "sum": 3}]}"#;
        let list = r#"[{"key": "10.0.0.1", "value": 1}, {"key": 2, "cpus": [1, 2]}]"#;
        assert_eq!(entries(dumped).unwrap(), entries(list).unwrap());
        let failure = entries(r#"{"entries": [{"value": 1}], "host": "web1"}"#).unwrap_err();
        let text = failure.render("error");
        assert!(text.contains("map.json: entries[0].key"), "{text}");
        assert!(text.contains("map.json: generation"), "{text}");
    }

    #[test]
    fn every_mistake_of_every_file_is_told_with_its_file() {
        let failure = combine(&[
            ("a.yaml", &A.replace("xdp", "xpd"), Yaml),
            ("b.json", "{", Json),
            ("c.yaml", &A.replace("package: p", "package: p, proceed_on: [bogus]"), Yaml),
        ])
        .unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        let said = failure.render("error");
        for place in [
            "a.yaml: chains[0].hook",
            "at: b.json\n",
            "c.yaml: chains[0].programs[0].proceed_on[0]",
        ] {
            assert!(said.contains(place), "{place} not in\n{said}");
        }
    }

    #[test]
    fn one_chain_in_two_files_is_a_mistake() {
        let said =
            combine(&[("a.yaml", A, Yaml), ("b.yaml", A, Yaml)]).unwrap_err().render("error");
        assert!(said.contains("eth0/xdp is already described by a.yaml: chains[0]"), "{said}");
        assert!(said.contains("at: b.yaml: chains[0]"), "{said}");
    }

    #[test]
    fn documents_of_one_file_are_put_together() {
        let text = format!("---\n{A}\n---\n# nothing\n---\n{}", A.replace("eth0", "eth1"));
        let input = combine(&[("a.yaml", &text, Yaml)]).unwrap();
        assert_eq!(input.desired.chains.len(), 2);
        let failure = Failure::new(Exit::NotFound, "x").at("document.chains[1].interface");
        let place = &input.locate(failure).problems[0].path;
        assert!(place.starts_with("a.yaml (document 2, line "), "{place}");
        assert!(place.ends_with("): chains[0].interface"), "{place}");
        // All are checked before anything is done with one.
        let said = combine(&[("a.yaml", &format!("{A}\n---\n{}", A.replace("xdp", "xpd")), Yaml)])
            .unwrap_err()
            .render("error");
        assert!(
            said.contains("did you mean \"xdp\"?") && said.contains("(document 2, line"),
            "{said}"
        );
        let said =
            combine(&[("a.yaml", &format!("{A}\n---\n{A}"), Yaml)]).unwrap_err().render("error");
        assert!(
            said.contains(
                "eth0/xdp is already described by a.yaml (document 1, line 1): chains[0]"
            ),
            "{said}"
        );
    }

    #[test]
    fn an_answer_about_a_value_says_how_it_was_written() {
        let text = A.replace("package: p", "package: p, config: {mode: on, n: 5}");
        let input = combine(&[("a.yaml", &text, Yaml)]).unwrap();
        let told = |field: &str| {
            let path = format!("document.chains[0].programs[0].config.{field}");
            input.locate(Failure::new(Exit::Invalid, "true is not text").at(path)).render("error")
        };
        assert!(told("mode").contains("\"on\" in quotes is one"), "{}", told("mode"));
        assert!(!told("n").contains("quotes"), "{}", told("n"));
    }

    #[test]
    fn what_is_to_be_no_text_is_not_to_be_quoted() {
        let text = A.replace("package: p", "package: p, config: {rate: 1e3}");
        let input = combine(&[("a.yaml", &text, Yaml)]).unwrap();
        for message in ["1000.0 is not a whole number of 0 or more", "1000 is more than 10"] {
            let failure = Failure::new(Exit::Invalid, message)
                .at("document.chains[0].programs[0].config.rate")
                .fix("write 10 or less");
            let said = input.locate(failure).render("error");
            assert!(said.contains("fix: write 10 or less") && !said.contains("quotes"), "{said}");
        }
    }

    #[test]
    fn standard_input_may_be_either() {
        assert_eq!(guess("  {\"chains\": []}"), Json);
        assert_eq!(guess("[{\"key\": 1}]"), Json);
        assert_eq!(guess("chains: []"), Yaml);
    }
}
