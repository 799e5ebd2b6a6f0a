//! The reference pages that are generated from the endpoint table: how to talk to Canopy from any
//! language, and what works today.

mod schema;

use crate::{
    endpoint::{self, Class, EndpointSpec, Service, Status},
    error::Code,
    permission::Role,
    subject::ROOT,
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _};

pub use schema::fields_markdown;

/// A client in Python, complete: the reference page shows it and the tests run it from there.
const PYTHON: &str = include_str!("reference/call.py");

/// The same in Go.
const GO: &str = include_str!("reference/call.go");

/// What is the same for every endpoint.
const RULES: &str = include_str!("reference/rules.md");

/// `docs/subjects.md`: everything a client in any language needs.
pub fn subjects_markdown() -> String {
    let mut out = RULES.replace("{PYTHON}", PYTHON.trim_end()).replace("{GO}", GO.trim_end());
    out = out.replace("{ROLES}", &roles()).replace("{CODES}", &codes());
    let mut types = BTreeMap::new();
    out.push_str("\n## Endpoints\n");
    for service in Service::ALL {
        let _ = write!(out, "\n### {service}\n\n");
        let (target, where_) = if service.is_host_local() {
            (
                "<host>",
                "On every host; `all` in place of the host asks every one of them (only `read` verbs).",
            )
        } else {
            ("_", "Central; one of several instances answers.")
        };
        let _ = writeln!(out, "{where_}\n");
        out.push_str(
            "| verb | subject | class | timeout | idempotent | |\n|---|---|---|---|---|---|\n",
        );
        for spec in of(service) {
            let status = match spec.status {
                Status::Works => "",
                Status::Planned => "*planned*. ",
            };
            let _ = writeln!(
                out,
                "| {} | `{ROOT}.rpc.{service}.{}.{}.{target}.<you>` | {} | {} s | {} | {status}{} |",
                spec.verb,
                spec.class,
                spec.verb,
                spec.class,
                spec.timeout.as_secs(),
                if spec.idempotent { "yes" } else { "by request id" },
                spec.summary
            );
        }
        for spec in of(service) {
            endpoint_section(&mut out, spec, &mut types);
        }
    }
    let _ = write!(out, "\n## Error replies\n\n");
    let error = schemars::schema_for!(crate::ApiError).to_value();
    schema::fields(&mut out, &error, &mut types);
    let _ = write!(
        out,
        "\n## Events\n\n`{ROOT}.event.<service>.<noun>.<what happened>.<host or _>`. People may subscribe to all of \
         them: `nats sub '{ROOT}.event.>'`. MessagePack unless the header `Content-Type` says otherwise.\n\n\
         ### `{ROOT}.event.loader.host.alive.<host>`\n\nEvery ten seconds and at the start of a loader.\n\n"
    );
    let alive = schemars::schema_for!(crate::wire::HostAlive).to_value();
    schema::fields(&mut out, &alive, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.chain.restored.<host>`\n\nA loader put a chain back.\n\n"
    );
    let restored = schemars::schema_for!(crate::wire::ChainRestored).to_value();
    schema::fields(&mut out, &restored, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.chain.changed.<host>`, `{ROOT}.event.loader.selector.changed.<host>`\n\n\
         A request changed a chain (`apply`, `delete`, `drain`), or failed to.\n\n"
    );
    let changed = schemars::schema_for!(crate::wire::ChainChanged).to_value();
    schema::fields(&mut out, &changed, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.map.changed.<host>`\n\nA request wrote or removed entries of a map.\n\n"
    );
    let written = schemars::schema_for!(crate::wire::MapChanged).to_value();
    schema::fields(&mut out, &written, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.package.refused.<host>`, `{ROOT}.event.registry.package.refused._`\n\n\
         An index or a package file was read and not believed.\n\n"
    );
    let refused = schemars::schema_for!(crate::wire::PackageRefused).to_value();
    schema::fields(&mut out, &refused, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.map.records.<host>`\n\nWhat programs put into a ring buffer that \
         somebody follows (`map-follow`).\n\n"
    );
    let records = schemars::schema_for!(crate::wire::MapRecords).to_value();
    schema::fields(&mut out, &records, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.loader.package.downgraded.<host>`\n\nA program went back to an older \
         version, because its caller allowed it by name.\n\n"
    );
    let downgraded = schemars::schema_for!(crate::wire::PackageDowngraded).to_value();
    schema::fields(&mut out, &downgraded, &mut types);
    let _ = write!(
        out,
        "\n### `{ROOT}.event.registry.package.published._`, `{ROOT}.event.registry.package.yanked._`\n\n\
         A version was published, withdrawn or brought back over the bus.\n\n"
    );
    let published = schemars::schema_for!(crate::wire::PackagePublished).to_value();
    schema::fields(&mut out, &published, &mut types);
    audit(&mut out, &mut types);
    schema::types(&mut out, &types);
    out
}

/// What is told of the audit trail, and to administrators alone.
fn audit(out: &mut String, types: &mut BTreeMap<String, Value>) {
    let _ = write!(
        out,
        "\n### `{ROOT}.event.policy.audit.finding._`\n\nAudit records that came to be stored do not follow \
         from what is stored.\n\n"
    );
    let finding = schemars::schema_for!(crate::wire::AuditFinding).to_value();
    schema::fields(out, &finding, types);
    let _ = write!(
        out,
        "\n## Audit records\n\n`{ROOT}.audit.<service>.<host or _>`: every request that changes something, and \
         every refusal, as it is told. They go to the account DATA, which people do not see. What is stored \
         is what writers send to `policy.audit-append`, and is asked for with `policy.audit`.\n\n"
    );
    let audit = schemars::schema_for!(crate::wire::Audit).to_value();
    schema::fields(out, &audit, types);
    security(out, types);
}

/// What only administrators hear of.
fn security(out: &mut String, types: &mut BTreeMap<String, Value>) {
    let _ = write!(
        out,
        "\n## Security events\n\n`{ROOT}.security.<service>.<noun>.<what happened>.<host or _>`: events that tell \
         whence people connect. Only administrators whose token is not narrowed may subscribe: \
         `nats sub '{ROOT}.security.>'`.\n\n\
         ### `{ROOT}.security.policy.connect.refused._`\n\nSomebody tried to connect, and was refused.\n\n"
    );
    let refused = schemars::schema_for!(crate::wire::ConnectRefused).to_value();
    schema::fields(out, &refused, types);
    let _ = write!(
        out,
        "\n### `{ROOT}.security.policy.connect.cut._`\n\nConnections of a principal that used more of the bus \
         than it may were ended, and new ones are refused for a while.\n\n"
    );
    let cut = schemars::schema_for!(crate::wire::ConnectCut).to_value();
    schema::fields(out, &cut, types);
}

/// The status table of the README: what each service does today and what is planned.
pub fn status_table_markdown() -> String {
    let mut out = String::from("| service | works | planned |\n|---|---|---|\n");
    for service in Service::ALL {
        let list = |status: Status| {
            let verbs: Vec<String> = of(service)
                .filter(|spec| spec.status == status)
                .map(|spec| format!("`{}`", spec.verb))
                .collect();
            if verbs.is_empty() { "–".to_owned() } else { verbs.join(", ") }
        };
        let _ =
            writeln!(out, "| {service} | {} | {} |", list(Status::Works), list(Status::Planned));
    }
    out
}

fn of(service: Service) -> impl Iterator<Item = &'static EndpointSpec> {
    endpoint::all().filter(move |spec| spec.service == service)
}

fn roles() -> String {
    let mut out = String::from("| role | classes |\n|---|---|\n");
    for role in Role::ALL {
        let classes: Vec<String> =
            role.classes().iter().map(|class| format!("`{class}`")).collect();
        let _ = writeln!(out, "| {role} | {} |", classes.join(", "));
    }
    out
}

fn codes() -> String {
    let mut out = String::from("| code | number | retry | who acts |\n|---|---|---|---|\n");
    for (code, who) in [
        (Code::Invalid, "the caller corrects the request"),
        (Code::Denied, "an administrator decides"),
        (Code::NotFound, "the caller corrects the name"),
        (Code::Conflict, "the caller reads the state again"),
        (Code::Unsupported, "an operator chooses another host or version"),
        (Code::Unavailable, "nobody: later"),
        (Code::Internal, "report it: a defect"),
    ] {
        let retry = if code.retryable() { "yes" } else { "no" };
        let _ = writeln!(out, "| `{}` | {} | {retry} | {who} |", code.as_str(), code.number());
    }
    out
}

fn endpoint_section(out: &mut String, spec: &EndpointSpec, types: &mut BTreeMap<String, Value>) {
    let Some(schemas) = spec.schemas else { return };
    let (request, reply) = schemas();
    let _ = write!(out, "\n#### {}.{}\n\n{}.", spec.service, spec.verb, spec.summary);
    if !spec.callers.is_empty() {
        let callers: Vec<String> = spec.callers.iter().map(ToString::to_string).collect();
        let _ = write!(out, " Daemons that may call it: {}.", callers.join(", "));
    }
    out.push_str("\n\nRequest:\n\n");
    schema::fields(out, &request.to_value(), types);
    out.push_str("\nReply:\n\n");
    schema::fields(out, &reply.to_value(), types);
    if let Some(line) = nats_line(spec) {
        let _ = write!(out, "\n```sh\n{line}\n```\n");
    }
}

/// A `nats` command line that makes the request; none for what people may not.
fn nats_line(spec: &EndpointSpec) -> Option<String> {
    let role = Role::ALL.into_iter().find(|role| role.classes().contains(&spec.class))?;
    let (target, responder) = if spec.service.is_host_local() {
        ("web1", format!("h-web1-{}", spec.service))
    } else {
        ("_", format!("s-{}", spec.service))
    };
    Some(format!(
        "nats req --inbox-prefix _INBOX.u-{role}.{responder} -H Content-Type:application/json \\\n  \
         {ROOT}.rpc.{}.{}.{}.{target}.u-{role} '{}'",
        spec.service,
        spec.class,
        spec.verb,
        example(spec)
    ))
}

/// A request that makes sense, as JSON.
fn example(spec: &EndpointSpec) -> &'static str {
    match (spec.service, spec.class, spec.verb) {
        (Service::Loader, Class::Write, "apply") => {
            r#"{"dry_run": true, "document": {"chains": [{"interface": "eth0", "hook": "xdp", "programs": [{"name": "blocklist", "package": "firewall@^0.1"}]}]}}"#
        }
        (Service::Loader, Class::Write, "delete") => {
            r#"{"dry_run": true, "interface": "eth0", "hook": "xdp"}"#
        }
        (Service::Loader, Class::Write, "drain") => r#"{"dry_run": true}"#,
        (Service::Loader, Class::Write, "profile") => r#"{"seconds": 30}"#,
        (Service::Loader, Class::Read, "map-dump") => {
            r#"{"map": {"interface": "eth0", "hook": "xdp", "program": "blocklist", "map": "fw_totals"}}"#
        }
        (Service::Loader, Class::Read, "map-get") => {
            r#"{"keys": [0], "map": {"interface": "eth0", "hook": "xdp", "program": "blocklist", "map": "fw_totals"}}"#
        }
        (Service::Loader, Class::Write, "map-set") => {
            r#"{"dry_run": true, "entries": [{"key": 0, "value": 0}], "map": {"interface": "eth0", "hook": "xdp", "program": "blocklist", "map": "fw_totals"}}"#
        }
        (Service::Loader, Class::Write, "map-follow") => {
            r#"{"type": "struct event", "map": {"interface": "eth0", "hook": "xdp", "program": "watch", "map": "events"}}"#
        }
        (Service::Loader, Class::Write, "map-delete") => {
            r#"{"dry_run": true, "keys": [{"address": {"bytes": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1]}, "kind": 4}], "map": {"interface": "eth0", "hook": "xdp", "program": "limit", "map": "rl_sources"}}"#
        }
        (Service::Loader, Class::Admin, "reset-index") => r#"{"repository": "starter", "to": 41}"#,
        (Service::Registry, Class::Admin, "reset-index") => r#"{"repository": "starter"}"#,
        (Service::Policy, Class::Read, "explain") => {
            r#"{"principal": "u-alice", "host": "web1", "item": {"verb": "apply", "interface": "eth0", "hook": "xdp", "package": "firewall", "version": "0.1.0"}}"#
        }
        (Service::Registry, Class::Read, "describe") => r#"{"package": "firewall"}"#,
        (Service::Registry, Class::Read, "resolve") => {
            r#"{"package": "firewall", "requirement": "^0.1"}"#
        }
        (Service::Policy, Class::Admin, "token-issue") => {
            r#"{"principal": "u-alice", "role": "viewer", "expires_in": 86400}"#
        }
        (Service::Policy, Class::Admin, "token-regenerate" | "token-revoke") => {
            r#"{"principal": "u-alice"}"#
        }
        (Service::Policy, Class::Admin, "host-enrol") => {
            r#"{"host": "web9", "certificates": {"loader": "-----BEGIN CERTIFICATE REQUEST-----\n…"}, "labels": {"rack": "7"}}"#
        }
        (Service::Policy, Class::Admin, "host-label") => {
            r#"{"host": "web9", "labels": {"rack": "8", "env": null}}"#
        }
        (Service::Policy, Class::Admin, "host-revoke" | "host-forget") => r#"{"host": "web9"}"#,
        (Service::Policy, Class::Internal, "host-renew") => {
            r#"{"request": "-----BEGIN CERTIFICATE REQUEST-----\n…"}"#
        }
        (Service::Registry, Class::Publish, "publish-index") => {
            r#"{"repository": "mine", "offset": 0}"#
        }
        (Service::Registry, Class::Publish, "publish-upload") => {
            r#"{"repository": "mine", "digest": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "total": 1, "offset": 0, "data": "eA=="}"#
        }
        (Service::Registry, Class::Publish, "publish") => {
            r#"{"repository": "mine", "packages": [], "index": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}"#
        }
        (Service::Registry, Class::Publish, "yank") => {
            r#"{"repository": "mine", "package": "firewall", "version": "0.1.0", "yanked": true, "index": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "replaces": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}"#
        }
        _ => "{}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_a_good_request() {
        for spec in endpoint::all() {
            let (Some(schemas), Some(_)) = (spec.schemas, nats_line(spec)) else { continue };
            let request: Value = serde_json::from_str(example(spec)).unwrap();
            let schema = schemas().0.to_value();
            let validator = jsonschema::validator_for(&schema).unwrap();
            let errors: Vec<_> = validator.iter_errors(&request).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{}.{}: {errors:?}", spec.service, spec.verb);
        }
    }

    #[test]
    fn the_page_has_every_verb_and_every_type_it_refers_to() {
        let page = subjects_markdown();
        for spec in endpoint::all() {
            let subject = format!(".rpc.{}.{}.{}.", spec.service, spec.class, spec.verb);
            assert!(page.contains(&subject), "{subject}");
        }
        for (at, _) in page.match_indices("](#") {
            let anchor = page[at + 3..].split(')').next().unwrap();
            let found = page.lines().any(|line| {
                line.starts_with('#')
                    && line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-")
                        == anchor
            });
            assert!(found, "nothing is called #{anchor}");
        }
        for left in ["{PYTHON}", "{GO}", "{ROLES}", "{CODES}"] {
            assert!(!page.contains(left), "{left}");
        }
        // Names of the source mean nothing here.
        for name in
            ["[`", "::", "ARTIFACT_CHUNK", "ADMIT_ITEMS", "SEARCH_LIMIT", "PUBLISH_PACKAGES"]
        {
            let found = page.lines().find(|line| line.starts_with('|') && line.contains(name));
            assert_eq!(found, None, "{name}");
        }
        for needed in ["auth_token", "TLS first", "_INBOX.<you>.<responder>.>", "524288"] {
            assert!(page.contains(needed), "{needed}");
        }
    }

    #[test]
    fn planned_is_told_from_works() {
        let table = status_table_markdown();
        let loader = table.lines().find(|line| line.starts_with("| loader")).unwrap();
        let columns: Vec<&str> = loader.split(" | ").collect();
        assert!(columns[1].contains("`apply`") && columns[2].contains("`repair`"), "{loader}");
    }
}
