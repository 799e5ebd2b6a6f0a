//! Which fields a service knows: what a caller asks before it sends a field that the service may not have.
//!
//! A service tells its fields by verb in its answer to `version`. One that tells none is of a release from
//! before that, whose fields are in `known_before.txt`.

use crate::{
    desired::DesiredState,
    document,
    endpoint::{Endpoint, EndpointSpec, EndpointVisitor, Service, Status, all, for_each, loader},
};
use schemars::{JsonSchema, schema_for};
use serde_json::Value;
use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Fields by verb, as paths such as `entries[].key`.
pub type Fields = BTreeMap<String, BTreeSet<String>>;

/// Fields that were known before services told theirs: `service.verb: field …`. The file never changes.
const KNOWN_BEFORE: &str = include_str!("known_before.txt");

/// The fields of every verb that a service serves.
pub fn served(service: Service) -> Fields {
    all()
        .filter(|spec| spec.service == service && spec.status == Status::Works)
        .map(|spec| (spec.verb.to_owned(), of_request(spec).clone()))
        .collect()
}

/// The fields that a service has which does not tell them.
pub fn before(service: Service) -> Fields {
    let mut fields = Fields::new();
    for line in KNOWN_BEFORE.lines() {
        let Some((name, paths)) = line.split_once(':') else { continue };
        if let Some((of, verb)) = name.split_once('.')
            && of == service.as_str()
        {
            let paths = paths.split_whitespace().map(str::to_owned).collect();
            fields.insert(verb.to_owned(), paths);
        }
    }
    fields
}

/// The fields of the request of a verb.
fn of_request(spec: &EndpointSpec) -> &'static BTreeSet<String> {
    static FIELDS: OnceLock<BTreeMap<(Service, &str), BTreeSet<String>>> = OnceLock::new();
    static NONE: BTreeSet<String> = BTreeSet::new();
    struct Collect(BTreeMap<(Service, &'static str), BTreeSet<String>>);
    impl EndpointVisitor for Collect {
        fn visit<E: Endpoint>(&mut self) {
            self.0.insert((E::SPEC.service, E::SPEC.verb), fields_of::<E>());
        }
    }
    let made = FIELDS.get_or_init(|| {
        let mut collect = Collect(BTreeMap::new());
        for_each(&mut collect);
        collect.0
    });
    made.get(&(spec.service, spec.verb)).unwrap_or(&NONE)
}

/// The fields of an endpoint's request.
pub fn fields_of<E: Endpoint>() -> BTreeSet<String> {
    let mut fields = document::fields(&schema::<E::Request>());
    if (E::SPEC.service, E::SPEC.verb) == (Service::Loader, <loader::Apply as Endpoint>::SPEC.verb)
    {
        // The document is checked by a type of its own.
        let below = document::fields(&schema::<DesiredState>());
        fields.extend(below.into_iter().map(|path| format!("document.{path}")));
    }
    fields
}

fn schema<T: JsonSchema>() -> Value {
    Value::from(schema_for!(T))
}

/// Fields of a request that came after services began to tell theirs. Found once for each endpoint.
pub fn newer<E: Endpoint>() -> Arc<BTreeSet<String>> {
    static MADE: Mutex<BTreeMap<TypeId, Arc<BTreeSet<String>>>> = Mutex::new(BTreeMap::new());
    let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fields) = made().get(&TypeId::of::<E>()) {
        return Arc::clone(fields);
    }
    let before = before(E::SPEC.service).remove(E::SPEC.verb).unwrap_or_default();
    let newer = fields_of::<E>().into_iter().filter(|path| !before.contains(path)).collect();
    let newer = Arc::new(newer);
    made().insert(TypeId::of::<E>(), Arc::clone(&newer));
    newer
}

/// Those of the fields that a request makes use of. One that says nothing is not sent.
pub fn used(request: &Value, fields: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(request, "", fields, &mut found);
    found
}

fn walk(value: &Value, path: &str, fields: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(value, &path, fields, found);
                if fields.contains(&path) && !value.is_null() {
                    found.insert(path);
                }
            }
        }
        Value::Array(items) => {
            let path = format!("{path}[]");
            for item in items {
                walk(item, &path, fields, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::policy;
    use serde_json::json;

    #[test]
    fn fields_are_told_at_every_depth() {
        let loader = served(Service::Loader);
        for (verb, path) in [
            ("apply", "dry_run"),
            ("apply", "document.chains[].programs[].config"),
            ("map-set", "entries[].cpus"),
            ("map-set", "map.netns"),
        ] {
            assert!(loader[verb].contains(path), "{verb} {path}: {:?}", loader[verb]);
        }
        assert!(served(Service::Policy)["token-issue"].contains("scope"));
    }

    #[test]
    fn releases_from_before_have_a_subset_of_todays_fields() {
        for service in Service::ALL {
            let now = served(service);
            for (verb, fields) in before(service) {
                let gone: Vec<_> = fields.difference(&now[&verb]).collect();
                assert_eq!(gone, [] as [&String; 0], "{service}.{verb}");
            }
        }
        assert!(before(Service::Loader)["apply"].contains("document.chains[].hook"));
        assert!(!before(Service::Loader)["get"].contains("cursor"));
        assert!(!newer::<loader::Apply>().contains("dry_run"));
        assert!(newer::<loader::Get>().contains("cursor"));
    }

    /// A field that has to be there would make every older caller's request wrong.
    #[test]
    fn newer_fields_are_optional() {
        struct Check;
        impl EndpointVisitor for Check {
            fn visit<E: Endpoint>(&mut self) {
                // A verb that is new is called by those who know it.
                if !before(E::SPEC.service).contains_key(E::SPEC.verb) {
                    return;
                }
                let schema = schema::<E::Request>();
                let required = schema.get("required").and_then(Value::as_array);
                for name in required.into_iter().flatten().filter_map(Value::as_str) {
                    let newer = newer::<E>();
                    assert!(!newer.contains(name), "{}.{name}", E::SPEC.verb);
                }
            }
        }
        for_each(&mut Check);
    }

    #[test]
    fn a_field_counts_as_used_where_it_says_something() {
        let fields: BTreeSet<String> =
            ["a", "b.c", "list[].d", "none"].map(str::to_owned).into_iter().collect();
        let used_in = |request| used(&request, &fields).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(used_in(json!({ "a": false, "b": { "c": 1 }, "none": null })), "a b.c");
        assert_eq!(used_in(json!({ "list": [{ "x": 1 }, { "d": 1 }], "c": 1 })), "list[].d");
        assert!(newer::<policy::TokenRevoke>().is_empty());
        // A person's document is looked into as well.
        let request =
            json!({ "document": { "chains": [{ "interface": "eth0", "netns": "blue" }] } });
        let used = used(&request, &fields_of::<loader::Apply>());
        assert!(used.contains("document.chains[].netns") && !used.contains("dry_run"), "{used:?}");
    }
}
