//! What a package says of itself, for those who look: the schema of its settings, its maps.

use crate::{
    archive::Package,
    elf::ObjectFile,
    manifest::{Manifest, Parameter, ParameterType},
};
use canopy_api::map_kind;
use serde_json::{Map, Value, json};

/// A map of one of a package's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMap {
    /// Its name.
    pub name: String,
    /// The object it is in.
    pub object: String,
    /// Its kind by name; a number where it has none here, empty where the object does not say.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: Option<u32>,
    /// Bytes of a value.
    pub value_size: Option<u32>,
    /// Entries, as the manifest says, else the object.
    pub max_entries: Option<u32>,
}

impl Package {
    /// The maps of its objects. What cannot be read has none: [`Package::check_objects`] says why.
    pub fn maps(&self) -> Vec<DescribedMap> {
        let mut maps = Vec::new();
        for (object, bytes) in &self.objects {
            let Ok(file) = ObjectFile::read(bytes) else { continue };
            for map in file.maps {
                let declared = self.manifest.maps.iter().find(|known| known.name == map.name);
                maps.push(DescribedMap {
                    object: object.clone(),
                    kind: map.kind.map(kind_name).unwrap_or_default(),
                    key_size: map.key_size,
                    value_size: map.value_size,
                    max_entries: declared.and_then(|map| map.max_entries).or(map.max_entries),
                    name: map.name,
                });
            }
        }
        maps
    }
}

/// A kind of map by name; a number where it has none here.
pub(crate) fn kind_name(number: u32) -> String {
    map_kind(number).map_or_else(|| number.to_string(), str::to_owned)
}

impl Manifest {
    /// JSON Schema (2020-12) of what a document may put under `config` for a program of this package.
    pub fn config_schema(&self) -> Value {
        let properties: Map<String, Value> =
            self.config.iter().map(|one| (one.name.clone(), schema(one))).collect();
        let required: Vec<&str> = self
            .config
            .iter()
            .filter(|one| one.default.is_none())
            .map(|one| one.name.as_str())
            .collect();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }
}

fn schema(parameter: &Parameter) -> Value {
    let port = || json!({ "type": "integer", "minimum": 1, "maximum": 65535 });
    let mut schema = match parameter.kind {
        ParameterType::U32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        ParameterType::U64 => json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
        ParameterType::Bool => json!({ "type": "boolean" }),
        ParameterType::Duration => {
            json!({ "type": "string", "pattern": "^[0-9]+(ns|us|µs|ms|s|m|h|d)$" })
        }
        ParameterType::Port => port(),
        ParameterType::Ports => json!({ "type": "array", "items": port() }),
        ParameterType::Prefixes => json!({ "type": "array", "items": { "type": "string" } }),
        ParameterType::Mac => {
            json!({ "type": "string", "pattern": "^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}$" })
        }
        ParameterType::String => json!({ "type": "string" }),
    };
    let Some(fields) = schema.as_object_mut() else { return schema };
    let (low, high) = match parameter.kind {
        ParameterType::U32 | ParameterType::U64 | ParameterType::Port => ("minimum", "maximum"),
        ParameterType::Ports | ParameterType::Prefixes => ("minItems", "maxItems"),
        ParameterType::String => ("minLength", "maxLength"),
        // Its bounds are of what the text means.
        ParameterType::Duration | ParameterType::Bool | ParameterType::Mac => ("", ""),
    };
    for (name, bound) in [(low, parameter.min), (high, parameter.max)] {
        if let Some(bound) = bound.filter(|_| !name.is_empty()) {
            fields.insert(name.to_owned(), json!(bound));
        }
    }
    let unit = parameter.unit.as_ref().map(|unit| format!(" ({unit})")).unwrap_or_default();
    fields.insert("description".to_owned(), json!(format!("{}{unit}", parameter.description)));
    if let Some(default) = &parameter.default {
        fields.insert("default".to_owned(), default.clone());
    }
    schema
}
