//! What the schema cannot say about a manifest: names, references, bounds.

use crate::{
    bind,
    manifest::{
        Bind, Manifest, ManifestProgram, Metric, Parameter, ParameterType, Requires, Select,
    },
    metric, near,
};
use canopy_api::{Hook, Problem, Problems, desired::parse_proceed_on, text::is_hidden};
use serde_json::Value;
use std::collections::BTreeMap;

/// Names the loader itself gives to labels of a package's metrics.
const RESERVED_LABELS: [&str; 7] =
    ["host", "netns", "interface", "hook", "program", "package", "version"];

/// Time series that the metrics of a package can be at most, of one of its programs in one chain.
pub const PACKAGE_SERIES: u64 = 10_000;

/// Most keywords.
const KEYWORDS: usize = 10;

/// Most variants of a program.
const VARIANTS: usize = 8;

/// Tail calls a packet can take: the kernel's `MAX_TAIL_CALL_CNT`.
const TAIL_CALLS: u32 = 33;

/// Longest string setting, bytes.
const STRING_LIMIT: u64 = 4096;

impl Manifest {
    /// Checks everything that can be checked without the objects; every mistake at once.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        self.check_text(&mut problems);
        self.check_head(&mut problems);
        self.check_programs(&mut problems);
        self.check_config(&mut problems);
        for (i, metric) in self.metrics.iter().enumerate() {
            self.check_metric(metric, &format!("metrics[{i}]"), &mut problems);
        }
        unique(self.metrics.iter().map(|metric| metric.name.as_str()), "metrics", &mut problems);
        self.check_exported_names(&mut problems);
        self.check_series(&mut problems);
        unique(self.maps.iter().map(|map| map.name.as_str()), "maps", &mut problems);
        for (i, map) in self.maps.iter().enumerate() {
            let at = format!("maps[{i}]");
            if map.name.is_empty() {
                problems.push(Problem::new(format!("{at}.name"), "the name is empty"));
            }
            if map.max_entries == Some(0) {
                problems.push(
                    Problem::new(format!("{at}.max_entries"), "a map needs room for one entry")
                        .remedy("write 1 or more, or leave it out"),
                );
            }
        }
        problems.into_result()
    }

    /// That every text says what it seems to say, wherever it is shown.
    fn check_text(&self, problems: &mut Problems) {
        // What is not text has none of its own.
        let manifest = serde_json::to_value(self).unwrap_or_default();
        look_for_hidden(&manifest, "", problems);
    }

    /// That its metrics are not more than anybody can read.
    fn check_series(&self, problems: &mut Problems) {
        let series = self.most_series();
        if series <= PACKAGE_SERIES {
            return;
        }
        let listed = self.metrics.iter().filter_map(|metric| match &metric.select {
            Select::Items { config, .. } => Some(format!("`{config}`")),
            Select::Slot(_) | Select::Count | Select::Total | Select::Top { .. } => None,
        });
        let mut lists: Vec<String> = listed.collect();
        lists.sort();
        lists.dedup();
        let remedy = if lists.is_empty() {
            "declare fewer metrics".to_owned()
        } else {
            format!(
                "lower `max` of {}, whose items each have a time series, or count with select: total",
                lists.join(", ")
            )
        };
        problems.push(
            Problem::new(
                "metrics",
                format!(
                    "they can be {series} time series of one program; a package has at most \
                     {PACKAGE_SERIES}"
                ),
            )
            .remedy(remedy),
        );
    }

    fn check_head(&self, problems: &mut Problems) {
        one_line(&self.description, 200, "description", problems);
        one_line(&self.license, 100, "license", problems);
        for (i, author) in self.authors.iter().enumerate() {
            one_line(author, 200, &format!("authors[{i}]"), problems);
        }
        check_requires(&self.requires, "requires", problems);
        if self.keywords.len() > KEYWORDS {
            problems.push(
                Problem::new("keywords", format!("there are more than {KEYWORDS} keywords"))
                    .remedy("keep those that people look for"),
            );
        }
        for (i, keyword) in self.keywords.iter().enumerate() {
            let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if !(1..=32).contains(&keyword.len()) || !keyword.bytes().all(letter) {
                problems.push(
                    Problem::new(
                        format!("keywords[{i}]"),
                        format!("\"{keyword}\" is not a keyword"),
                    )
                    .remedy("1 to 32 of a-z, 0-9 and '-'"),
                );
            }
        }
        unique(self.keywords.iter().map(String::as_str), "keywords", problems);
        if self.programs.is_empty() {
            problems.push(
                Problem::new("programs", "a package has at least one program")
                    .remedy("describe one: name, object, function, hooks"),
            );
        }
    }

    fn check_programs(&self, problems: &mut Problems) {
        unique(self.programs.iter().map(|program| program.name.as_str()), "programs", problems);
        for (i, program) in self.programs.iter().enumerate() {
            let at = format!("programs[{i}]");
            if !is_token(&program.name) {
                problems.push(
                    Problem::new(
                        format!("{at}.name"),
                        format!("\"{}\" is not a program name", program.name),
                    )
                    .remedy("1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit"),
                );
            }
            if program.function.is_empty() {
                problems.push(Problem::new(format!("{at}.function"), "the name is empty"));
            }
            if let Some(calls) = program.tail_calls.filter(|calls| *calls > TAIL_CALLS) {
                problems.push(
                    Problem::new(
                        format!("{at}.tail_calls"),
                        format!("{calls} are more than the {TAIL_CALLS} that a packet can take"),
                    )
                    .remedy("write 0 to 33, or leave it out"),
                );
            }
            self.check_variants(program, &at, problems);
            let xdp = program.hooks.iter().filter(|hook| **hook == Hook::Xdp).count();
            if program.hooks.is_empty() {
                problems.push(
                    Problem::new(format!("{at}.hooks"), "a program has at least one hook")
                        .remedy("one of [xdp], [tc-ingress], [tc-egress], [tc-ingress, tc-egress]"),
                );
            } else if xdp != 0 && xdp != program.hooks.len() {
                problems.push(
                    Problem::new(
                        format!("{at}.hooks"),
                        "xdp and tc hooks need programs of different types",
                    )
                    .remedy("describe two programs, each with its own function"),
                );
            }
            let Some(names) = &program.proceed_on else { continue };
            for hook in program.hooks.iter().take(1) {
                if let Err(bad) = parse_proceed_on(names, *hook, &format!("{at}.proceed_on")) {
                    problems.0.extend(bad.0);
                }
            }
        }
    }

    /// That each object of a program is the choice of some host.
    fn check_variants(&self, program: &ManifestProgram, at: &str, problems: &mut Problems) {
        let variants = &program.variants;
        if variants.len() > VARIANTS {
            problems.push(
                Problem::new(
                    format!("{at}.variants"),
                    format!("there are more than {VARIANTS} variants"),
                )
                .remedy("keep those that make a difference"),
            );
        }
        let files: Vec<_> = program.objects().collect();
        for (i, (place, file)) in files.iter().enumerate() {
            if let Some((first, _)) = files.iter().take(i).find(|(_, other)| other == file) {
                problems.push(
                    Problem::new(
                        format!("{at}.{place}"),
                        format!("{file} is already {first} of the program"),
                    )
                    .remedy("each variant has an object of its own"),
                );
            }
        }
        for (i, variant) in variants.iter().enumerate() {
            let at = format!("{at}.variants[{i}].requires");
            check_requires(&variant.requires, &at, problems);
            let before = variants.iter().take(i).position(|v| v.requires.within(&variant.requires));
            if variant.requires == Requires::default() {
                problems.push(
                    Problem::new(at, "it needs nothing, so what follows is never used")
                        .remedy("say what the host must have, or make it the program's object"),
                );
            } else if variant.requires.within(&self.requires) {
                problems.push(
                    Problem::new(
                        at,
                        "the package requires that everywhere, so what follows is never used",
                    )
                    .remedy("make it the program's object, or require less of every host"),
                );
            } else if let Some(before) = before {
                problems.push(
                    Problem::new(
                        at,
                        format!("every host that has this has what variants[{before}] needs"),
                    )
                    .remedy("put what needs more first"),
                );
            }
        }
    }

    fn check_config(&self, problems: &mut Problems) {
        unique(self.config.iter().map(|parameter| parameter.name.as_str()), "config", problems);
        for (i, parameter) in self.config.iter().enumerate() {
            check_parameter(parameter, &format!("config[{i}]"), problems);
        }
        let mut sizes = BTreeMap::new();
        for (i, parameter) in self.config.iter().enumerate() {
            let Bind::Slot { map, slot, value_size, .. } = &parameter.bind else { continue };
            let first = *sizes.entry((map, slot)).or_insert(*value_size);
            if first != *value_size {
                problems.push(
                    Problem::new(
                        format!("config[{i}].bind.value_size"),
                        format!("slot {slot} of {map} has {first} bytes in another setting"),
                    )
                    .remedy("write the size of the whole value in both"),
                );
            }
        }
        for (i, place) in bind::overlaps(&self.config) {
            problems.push(
                Problem::new(
                    format!("config[{i}].bind"),
                    format!("another setting is bound to the same bytes ({place})"),
                )
                .remedy("bind each setting to its own place"),
            );
        }
    }

    /// That each metric is exported under a name of its own.
    fn check_exported_names(&self, problems: &mut Problems) {
        let mut exported: BTreeMap<String, (usize, &str)> = BTreeMap::new();
        for (i, metric) in self.metrics.iter().enumerate() {
            let name = metric::exported_name(self.name.as_str(), &metric.name, metric.kind);
            let at = format!("metrics[{i}].name");
            if metric::LOADER_METRICS.contains(&name.as_str()) {
                let what = format!(
                    "\"{}\" is exported as {name}, which is a metric of the loader itself",
                    metric.name
                );
                problems.push(Problem::new(at, what).remedy("rename the metric"));
                continue;
            }
            match exported.get(&name) {
                // The same name twice is told already.
                Some((_, other)) if *other == metric.name => {}
                Some((first, other)) => problems.push(
                    Problem::new(
                        at,
                        format!(
                            "\"{}\" and \"{other}\" (metrics[{first}]) are both exported as {name}",
                            metric.name
                        ),
                    )
                    .remedy("rename one: \"_total\" is appended to the name of a counter"),
                ),
                None => {
                    exported.insert(name, (i, &metric.name));
                }
            }
        }
    }

    fn check_metric(&self, metric: &Metric, at: &str, problems: &mut Problems) {
        if !is_identifier(&metric.name) {
            problems.push(
                Problem::new(
                    format!("{at}.name"),
                    format!("\"{}\" is not a metric name", metric.name),
                )
                .remedy("1 to 63 of a-z, 0-9 and '_', starting with a letter"),
            );
        }
        one_line(&metric.help, 300, &format!("{at}.help"), problems);
        if metric.map.is_empty() {
            problems.push(Problem::new(format!("{at}.map"), "the name is empty"));
        }
        let mut labels = Vec::new();
        match &metric.select {
            Select::Slot(_) | Select::Count | Select::Total => {}
            Select::Items { label, config, .. } => {
                labels.push((format!("{at}.select.items.label"), label.as_str()));
                self.check_items(config, &format!("{at}.select.items.config"), problems);
            }
            Select::Top { count, labels: read } => {
                if !(1..=100).contains(count) {
                    problems.push(
                        Problem::new(
                            format!("{at}.select.top.count"),
                            format!("{count} is not a number of 1 to 100"),
                        )
                        .remedy("each entry becomes a time series of its own: keep it small"),
                    );
                }
                if read.is_empty() {
                    problems.push(
                        Problem::new(
                            format!("{at}.select.top.labels"),
                            "nothing tells the entries apart",
                        )
                        .remedy("read at least one label from the key, or use select: total"),
                    );
                }
                for (l, label) in read.iter().enumerate() {
                    let at = format!("{at}.select.top.labels[{l}].label");
                    labels.push((at, label.label.as_str()));
                }
            }
        }
        let mut seen = Vec::new();
        for (at, label) in labels {
            if !is_identifier(label) || RESERVED_LABELS.contains(&label) {
                problems.push(Problem::new(at, format!("\"{label}\" is not a label name")).remedy(
                    format!(
                        "a-z, 0-9 and '_', starting with a letter, none of {}",
                        RESERVED_LABELS.join(", ")
                    ),
                ));
            } else if seen.contains(&label) {
                problems.push(Problem::new(at, format!("the label \"{label}\" is there twice")));
            }
            seen.push(label);
        }
    }

    fn check_items(&self, config: &str, at: &str, problems: &mut Problems) {
        let found = self.config.iter().find(|parameter| parameter.name == config);
        let lists = || {
            let list = self.config.iter().filter(|parameter| is_list(parameter.kind));
            list.map(|parameter| parameter.name.as_str())
        };
        let problem = match found {
            Some(parameter) if is_list(parameter.kind) => return,
            Some(_) => Problem::new(at, format!("the setting \"{config}\" is not a list")),
            None => Problem::new(at, format!("there is no setting \"{config}\"")),
        };
        problems.push(match near::nearest(config, lists()) {
            Some(near) => problem.remedy(format!("did you mean \"{near}\"?")),
            None => problem.remedy("name a setting of type ports or prefixes"),
        });
    }
}

/// Every character that nobody sees, in every text.
fn look_for_hidden(value: &Value, at: &str, problems: &mut Problems) {
    match value {
        Value::String(text) => {
            let Some(hidden) = text.chars().find(|c| is_hidden(*c)) else { return };
            let code = u32::from(hidden);
            problems.push(
                Problem::new(at, format!("it has a character that nobody sees (U+{code:04X})"))
                    .remedy("remove it: text must say what it seems to say"),
            );
        }
        Value::Array(all) => {
            for (i, one) in all.iter().enumerate() {
                look_for_hidden(one, &format!("{at}[{i}]"), problems);
            }
        }
        Value::Object(fields) => {
            for (name, one) in fields {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                look_for_hidden(one, &at, problems);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_list(kind: ParameterType) -> bool {
    match kind {
        ParameterType::Ports | ParameterType::Prefixes => true,
        ParameterType::U32
        | ParameterType::U64
        | ParameterType::Bool
        | ParameterType::Duration
        | ParameterType::Port
        | ParameterType::Mac
        | ParameterType::String => false,
    }
}

fn check_parameter(parameter: &Parameter, at: &str, problems: &mut Problems) {
    if !is_identifier(&parameter.name) {
        problems.push(
            Problem::new(
                format!("{at}.name"),
                format!("\"{}\" is not a setting's name", parameter.name),
            )
            .remedy("1 to 63 of a-z, 0-9 and '_', starting with a letter"),
        );
    }
    one_line(&parameter.description, 300, &format!("{at}.description"), problems);
    if let (Some(min), Some(max)) = (parameter.min, parameter.max)
        && min > max
    {
        problems.push(
            Problem::new(format!("{at}.min"), format!("min {min} is more than max {max}"))
                .remedy("exchange them"),
        );
    }
    if parameter.kind == ParameterType::String {
        match parameter.max {
            None => problems.push(
                Problem::new(format!("{at}.max"), "a string needs its greatest length")
                    .remedy("write max: the size of the variable less one"),
            ),
            Some(max) if max > STRING_LIMIT => problems.push(
                Problem::new(
                    format!("{at}.max"),
                    format!("{max} bytes are more than {STRING_LIMIT}"),
                )
                .remedy("shorten the string"),
            ),
            Some(_) => {}
        }
    }
    check_bind(parameter, at, problems);
    // The default is a value like any other.
    if let Some(default) = &parameter.default
        && let Err(bad) = bind::parse(parameter, default, &format!("{at}.default"))
    {
        problems.0.extend(bad.0);
    }
}

fn check_bind(parameter: &Parameter, at: &str, problems: &mut Problems) {
    let fits = match (&parameter.bind, parameter.kind) {
        (Bind::Global { .. } | Bind::Slot { .. }, kind) => !is_list(kind),
        (Bind::Keys { .. }, kind) => kind == ParameterType::Ports,
        (Bind::Prefixes { .. }, kind) => kind == ParameterType::Prefixes,
    };
    if !fits {
        let remedy = match parameter.kind {
            ParameterType::Ports => "bind it as { keys: <hash map> }",
            ParameterType::Prefixes => "bind it as { lpm_v4: <LPM trie>, lpm_v6: <LPM trie> }",
            _ => "bind it as { global: <variable> } or { map: <array>, slot: …, value_size: … }",
        };
        problems.push(
            Problem::new(format!("{at}.bind"), "a setting of this type cannot be bound there")
                .remedy(remedy),
        );
    }
    if let Bind::Slot { offset, value_size, .. } = &parameter.bind {
        let end = u64::from(*offset) + u64::from(bind::size(parameter));
        if end > u64::from(*value_size) {
            problems.push(
                Problem::new(
                    format!("{at}.bind.value_size"),
                    format!("the setting ends at byte {end} of a value of {value_size}"),
                )
                .remedy("write the size of the whole value"),
            );
        } else if *value_size > 1 << 20 {
            problems.push(Problem::new(
                format!("{at}.bind.value_size"),
                format!("{value_size} bytes are more than {}", 1 << 20),
            ));
        }
    }
    if let Bind::Prefixes { hash_v4, hash_v6, .. } = &parameter.bind {
        let maps = parameter.bind.maps();
        let fields = [
            Some("lpm_v4"),
            Some("lpm_v6"),
            hash_v4.as_ref().map(|_| "hash_v4"),
            hash_v6.as_ref().map(|_| "hash_v6"),
        ];
        for (i, (field, map)) in fields.into_iter().flatten().zip(&maps).enumerate() {
            if maps.iter().take(i).any(|before| before == map) {
                let message = if field == "lpm_v6" {
                    "IPv4 and IPv6 need a map each"
                } else {
                    "each of them is a map of its own"
                };
                problems.push(
                    Problem::new(format!("{at}.bind.{field}"), message)
                        .remedy("keys of different sizes cannot share a map"),
                );
            }
        }
    }
}

impl Requires {
    /// Whether a host that has what `other` says has this as well.
    fn within(&self, other: &Self) -> bool {
        let kernel = |requires: &Self| requires.kernel.as_deref().and_then(release);
        let arch = self.arch.is_empty()
            || !other.arch.is_empty() && other.arch.iter().all(|arch| self.arch.contains(arch));
        // Without a release on either side: `None` is less than any.
        kernel(self) <= kernel(other)
            && arch
            && self.features.iter().all(|feature| other.features.contains(feature))
    }
}

fn check_requires(requires: &Requires, at: &str, problems: &mut Problems) {
    if let Some(kernel) = &requires.kernel
        && release(kernel).is_none()
    {
        problems.push(
            Problem::new(format!("{at}.kernel"), format!("\"{kernel}\" is not a kernel release"))
                .remedy("write major.minor, such as 5.15, in quotes"),
        );
    }
}

/// `5.15`, `6.1.0` to numbers.
pub fn release(text: &str) -> Option<Vec<u32>> {
    let parts: Vec<_> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    (2..=3).contains(&parts.len()).then_some(parts)
}

fn one_line(text: &str, limit: usize, at: &str, problems: &mut Problems) {
    if text.trim().is_empty() {
        problems.push(Problem::new(at, "it is empty").remedy("write one line"));
    } else if text.contains(char::is_control) || text.chars().count() > limit {
        problems.push(
            Problem::new(at, format!("it is not one line of at most {limit} characters"))
                .remedy("shorten it; details belong into README.md"),
        );
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>, list: &str, problems: &mut Problems) {
    let mut seen = BTreeMap::new();
    for (i, name) in names.enumerate() {
        if let Some(first) = seen.insert(name, i) {
            problems.push(
                Problem::new(
                    format!("{list}[{i}].name"),
                    format!("\"{name}\" is already the name of {list}[{first}]"),
                )
                .remedy("give each its own name"),
            );
        }
    }
}

fn is_token(text: &str) -> bool {
    text.parse::<canopy_api::ProgramName>().is_ok()
}

/// `[a-z][a-z0-9_]{0,62}`
fn is_identifier(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
