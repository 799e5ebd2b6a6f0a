//! Which option or word of the command line a field of a request comes from, so that an error of a service
//! names what was typed.

use crate::failure::Failure;
use canopy_api::endpoint::{EndpointSpec, Service};

/// Fields and what they come from, where that is the same in every command. What is below a field comes from
/// the same option.
const FIELDS: [(&str, &str); 44] = [
    ("allow_downgrade", "--allow-downgrade"),
    ("atomic", "--atomic"),
    ("binding", "--certificate"),
    ("by", "--by"),
    ("certificates", "REQUEST or --certificate"),
    ("decision", "--decision"),
    ("dry_run", "--dry-run"),
    ("expected_generation", "--expected-generation"),
    ("expires_in", "--expires"),
    ("hook", "HOOK"),
    ("host", "--host"),
    ("interface", "INTERFACE"),
    ("item.behind", "--behind"),
    ("item.hook", "--hook"),
    ("item.interface", "--interface"),
    ("item.map", "--map"),
    ("item.netns", "--interface"),
    ("item.package", "PACKAGE"),
    ("item.publisher", "--publisher"),
    ("item.shared_with", "--shared-with"),
    ("item.verb", "VERB"),
    ("item.version", "PACKAGE"),
    ("item.within", "--within"),
    ("keys", "KEY"),
    ("keyword", "--keyword"),
    ("labels", "--label"),
    ("limit", "--limit"),
    ("map", "MAP"),
    ("netns", "--netns"),
    ("package", "PACKAGE"),
    ("principal", "PERSON"),
    ("program", "PROGRAM"),
    ("replace", "--replace"),
    ("repository", "REPOSITORY"),
    ("requirement", "PACKAGE"),
    ("role", "--role"),
    ("scope.hosts", "--only-host"),
    ("scope.services", "--only-service"),
    ("seconds", "--interval"),
    ("service", "--service"),
    ("since", "--since"),
    ("undo", "--undo"),
    ("until", "--until"),
    ("words", "WORDS"),
];

/// The same, where it is something else in one command or has another name.
fn of_verb(service: Service, verb: &str, field: &str) -> Option<&'static str> {
    let option = match (service, verb, field) {
        (
            Service::Policy,
            "host-enrol" | "host-label" | "host-forget" | "host-revoke" | "host-list",
            "host",
        ) => "HOST",
        (Service::Policy, "host-label", "labels") => "LABEL",
        (Service::Policy, "audit", "verb") => "--verb",
        (Service::Policy, "audit" | "audit-checkpoints", "writer") => "--writer",
        (Service::Policy, "explain", "principal") => "WHO",
        (Service::Loader, "delete", "program") => "--program",
        (Service::Loader, "map-follow", "type") => "--type",
        (Service::Registry, "search", "hook") => "--hook",
        _ => return None,
    };
    Some(option)
}

/// A remedy in words of the command line, where the service's speaks of fields.
fn remedy(option: &str) -> Option<&'static str> {
    match option {
        "--certificate" => Some("--certificate FILE, or --san KIND=NAME"),
        _ => None,
    }
}

/// Whether `path` is this field or something below it.
fn is_within(path: &str, field: &str) -> bool {
    path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What the field at this path of a request comes from.
fn option(spec: &EndpointSpec, path: &str) -> Option<&'static str> {
    let head = path.split(['.', '[']).next().unwrap_or_default();
    of_verb(spec.service, spec.verb, head).or_else(|| {
        FIELDS.iter().find(|(field, _)| is_within(path, field)).map(|(_, option)| *option)
    })
}

/// The error of a service with options in place of fields. What comes from a file or from the program itself
/// stays.
#[must_use]
pub fn named(spec: &EndpointSpec, mut failure: Failure) -> Failure {
    for problem in &mut failure.problems {
        if let Some(option) = option(spec, &problem.path) {
            option.clone_into(&mut problem.path);
            if let Some(remedy) = remedy(option) {
                problem.remedy = Some(remedy.to_owned());
            }
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Cli, failure::Exit};
    use canopy_api::{
        endpoint::{Endpoint, loader, policy, registry},
        known,
    };
    use clap::CommandFactory as _;
    use std::collections::BTreeSet;

    #[test]
    fn errors_name_options_instead_of_fields() {
        let at = |spec: &EndpointSpec, path: &str| {
            let failure = named(spec, Failure::new(Exit::Invalid, "no").at(path).fix("(san)"));
            failure.problems[0].clone()
        };
        let issue = policy::TokenIssue::SPEC;
        for (path, option) in [
            ("scope.hosts", "--only-host"),
            ("scope.hosts[0]", "--only-host"),
            ("scope.services", "--only-service"),
            ("expires_in", "--expires"),
            ("principal", "PERSON"),
            ("role", "--role"),
            // Of another length, and of a document.
            ("roles", "roles"),
            ("document.chains[0].hook", "document.chains[0].hook"),
            ("", ""),
        ] {
            assert_eq!(at(issue, path).path, option);
        }
        let binding = at(issue, "binding");
        assert_eq!(binding.remedy.as_deref(), Some("--certificate FILE, or --san KIND=NAME"));
        assert_eq!(at(policy::HostLabel::SPEC, "labels.rack").path, "LABEL");
        assert_eq!(at(policy::HostEnrol::SPEC, "labels.rack").path, "--label");
        assert_eq!(at(policy::HostEnrol::SPEC, "host").path, "HOST");
        assert_eq!(at(policy::Audit::SPEC, "host").path, "--host");
        assert_eq!(at(loader::MapDelete::SPEC, "keys[1]").path, "KEY");
        assert_eq!(at(loader::MapGet::SPEC, "map.map").path, "MAP");
    }

    /// Fields that no option fills: positions in lists, documents and files, what the program itself says.
    fn is_of_the_program(field: &str) -> bool {
        const OWN: [&str; 10] = [
            "after",
            "cursor",
            "document",
            "entries",
            "from",
            "id",
            "item.path",
            "item.program",
            "order",
            "to",
        ];
        OWN.iter().any(|own| is_within(field, own))
    }

    /// The fields of a request that have neither an option nor a reason to have none.
    fn unnamed<E: Endpoint>(options: &BTreeSet<String>) -> Vec<String> {
        let fields = known::fields_of::<E>();
        let leaf = |field: &&String| {
            !fields.iter().any(|other| other != *field && is_within(other, field))
        };
        let is_known = |field: &&String| match option(E::SPEC, field) {
            Some(option) => !option.starts_with("--") || options.contains(option),
            None => {
                is_of_the_program(field) || (E::SPEC.verb, field.as_str()) == ("map-set", "when")
            }
        };
        let unnamed = fields.iter().filter(leaf).filter(|field| !is_known(field));
        unnamed.map(|field| format!("{}: {field}", E::SPEC.verb)).collect()
    }

    fn options(command: &clap::Command, into: &mut BTreeSet<String>) {
        into.extend(
            command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))),
        );
        command.get_subcommands().for_each(|command| options(command, into));
    }

    #[test]
    fn every_field_that_an_option_fills_is_named() {
        let mut all = BTreeSet::new();
        options(&Cli::command(), &mut all);
        let unnamed = [
            unnamed::<loader::Apply>(&all),
            unnamed::<loader::Delete>(&all),
            unnamed::<loader::Drain>(&all),
            unnamed::<loader::Get>(&all),
            unnamed::<loader::MapDelete>(&all),
            unnamed::<loader::MapDump>(&all),
            unnamed::<loader::MapFollow>(&all),
            unnamed::<loader::MapGet>(&all),
            unnamed::<loader::MapList>(&all),
            unnamed::<loader::MapSet>(&all),
            unnamed::<loader::Profile>(&all),
            unnamed::<loader::ResetIndex>(&all),
            unnamed::<policy::Audit>(&all),
            unnamed::<policy::AuditCheckpoints>(&all),
            unnamed::<policy::Explain>(&all),
            unnamed::<policy::HostEnrol>(&all),
            unnamed::<policy::HostForget>(&all),
            unnamed::<policy::HostLabel>(&all),
            unnamed::<policy::HostList>(&all),
            unnamed::<policy::HostRevoke>(&all),
            unnamed::<policy::TokenIssue>(&all),
            unnamed::<policy::TokenList>(&all),
            unnamed::<policy::TokenRegenerate>(&all),
            unnamed::<policy::TokenRevoke>(&all),
            unnamed::<registry::Describe>(&all),
            unnamed::<registry::List>(&all),
            unnamed::<registry::ResetIndex>(&all),
            unnamed::<registry::Search>(&all),
        ];
        assert_eq!(unnamed.concat(), Vec::<String>::new());
    }
}
