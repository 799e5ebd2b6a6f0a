//! Payloads: MessagePack with field names, or JSON.

use canopy_api::{
    document,
    error::{ApiError, Code},
    problem::{Problem, Problems},
};
use rmp_serde::decode::Error as Unread;
use schemars::JsonSchema;
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};

/// How deep a payload may nest; what `serde_json` allows. The library's own limit for MessagePack
/// (1024) overflows the stack of a task.
const MAX_DEPTH: usize = 128;

/// Most requests and many replies are shorter: they are written without growing the buffer.
const USUAL_SIZE: usize = 512;

/// How a payload is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// MessagePack, structures as maps with field names. The default, without `Content-Type`.
    #[default]
    MessagePack,
    /// JSON, with `Content-Type: application/json`.
    Json,
}

impl Encoding {
    /// As in `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::MessagePack => "application/msgpack",
            Self::Json => "application/json",
        }
    }

    /// From `Content-Type`, parameters ignored; absent is MessagePack.
    pub(crate) fn of(content_type: Option<&str>) -> Result<Self, ApiError> {
        let Some(text) = content_type else { return Ok(Self::MessagePack) };
        let media = text.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("application/json") {
            Ok(Self::Json)
        } else if ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"]
            .iter()
            .any(|known| media.eq_ignore_ascii_case(known))
        {
            Ok(Self::MessagePack)
        } else {
            Err(ApiError::new(Code::Invalid, format!("Content-Type \"{media}\" is not understood"))
                .remedy("send application/msgpack or application/json"))
        }
    }

    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<Vec<u8>, String> {
        match self {
            Self::MessagePack => {
                let mut bytes = Vec::with_capacity(USUAL_SIZE);
                let mut writer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
                value.serialize(&mut writer).map_err(|e| e.to_string())?;
                Ok(bytes)
            }
            Self::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
        }
    }

    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, String> {
        match self {
            Self::MessagePack => {
                let mut rest = bytes;
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                reader.set_max_depth(MAX_DEPTH);
                let value = T::deserialize(&mut reader).map_err(|e| e.to_string())?;
                if rest.is_empty() {
                    Ok(value)
                } else {
                    Err(format!("{} bytes too many at the end", rest.len()))
                }
            }
            Self::Json => serde_json::from_slice(bytes).map_err(|e| e.to_string()),
        }
    }

    /// Decodes a request. An empty payload is one without fields, so that `nats req SUBJECT ''`
    /// works. Fields that the request does not have are refused at every depth: what was meant by them
    /// would not be done. The error names every mistake with its path.
    pub(crate) fn decode_request<T: DeserializeOwned + JsonSchema + 'static>(
        self,
        bytes: &[u8],
    ) -> Result<T, ApiError> {
        let empty: &[u8] = match self {
            Self::MessagePack => &[0x80],
            Self::Json => b"{}",
        };
        let bytes = if bytes.is_empty() { empty } else { bytes };
        let unknown = self.unknown_fields::<T>(bytes);
        let error = match (self.decode(bytes), &unknown) {
            (Ok(request), Ok(unknown)) if unknown.0.is_empty() => return Ok(request),
            (Err(error), _) => error,
            (Ok(_), Err(error)) => error.clone(),
            (Ok(_), Ok(_)) => String::new(),
        };
        // What is no value at all has no fields that could be wrong.
        if let Some(unreadable) = self.unreadable(bytes) {
            return Err(ApiError::invalid(unreadable.into()));
        }
        let mut problems = unknown.unwrap_or_default();
        // The schema says where else it differs from what was expected.
        if let Ok(document::Lenient(value)) = self.decode(bytes) {
            problems = document::violations::<T>(problems, &value);
            if problems.0.is_empty() {
                problems = document::check::<T>(value).err().unwrap_or_default();
            }
        }
        if !problems.0.is_empty() {
            return Err(ApiError::invalid(problems));
        }
        let name = self.name();
        Err(ApiError::new(
            Code::Invalid,
            format!("the request is not the {name} expected: {error}"),
        )
        .remedy("send the fields of docs/subjects.md"))
    }

    fn name(self) -> &'static str {
        match self {
            Self::MessagePack => "MessagePack",
            Self::Json => "JSON",
        }
    }

    /// Why bytes are no value of this encoding, in our words; `None` where they are.
    fn unreadable(self, bytes: &[u8]) -> Option<Problem> {
        const OTHER: [&str; 2] = [
            "send it as MessagePack, or with the header Content-Type: application/json",
            "send it as JSON, or with the header Content-Type: application/msgpack",
        ];
        match self {
            Self::MessagePack => {
                let why = not_messagepack(bytes)?;
                let json = bytes.trim_ascii_start().starts_with(b"{");
                let why = if json && document::not_json(bytes).is_none() {
                    "it is JSON, and its Content-Type does not say so".to_owned()
                } else {
                    why
                };
                let [remedy, _] = OTHER;
                Some(
                    Problem::new("", format!("the request is not MessagePack: {why}"))
                        .remedy(remedy),
                )
            }
            Self::Json => {
                let mut problem = document::not_json(bytes)?;
                let [_, remedy] = OTHER;
                problem.message = format!("the request is {}", problem.message);
                if problem.remedy.is_none() && not_messagepack(bytes).is_none() {
                    problem = problem.remedy(remedy);
                }
                Some(problem)
            }
        }
    }

    /// Fields in the bytes that a request does not have.
    fn unknown_fields<T: JsonSchema + 'static>(self, bytes: &[u8]) -> Result<Problems, String> {
        match self {
            Self::MessagePack => {
                let mut rest = bytes;
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                reader.set_max_depth(MAX_DEPTH);
                document::unknown_fields::<T, _>(&mut reader).map_err(|e| e.to_string())
            }
            Self::Json => {
                let mut reader = serde_json::Deserializer::from_slice(bytes);
                document::unknown_fields::<T, _>(&mut reader).map_err(|e| e.to_string())
            }
        }
    }
}

/// Why bytes are no MessagePack, in our words; `None` where they are.
fn not_messagepack(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(MAX_DEPTH);
    let outcome = document::Lenient::deserialize(&mut reader);
    Some(match outcome {
        Ok(_) if rest.is_empty() => return None,
        Ok(_) => format!("{} bytes follow behind its end", rest.len()),
        Err(Unread::InvalidMarkerRead(_) | Unread::InvalidDataRead(_)) => {
            "it ends in the middle of a value".to_owned()
        }
        Err(Unread::DepthLimitExceeded) => {
            format!("values nest deeper than {MAX_DEPTH} levels")
        }
        Err(Unread::Utf8Error(_)) => "a text in it is not UTF-8".to_owned(),
        Err(Unread::TypeMismatch(_) | Unread::OutOfRange | Unread::LengthMismatch(_)) => {
            "a value in it is of no type that requests have".to_owned()
        }
        Err(Unread::Syntax(_) | Unread::Uncategorized(_)) => {
            "the name of a field as text is expected where something else is".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::wire::{
        ApplyRequest, ArtifactReply, DeleteRequest, DrainRequest, Empty, MapGetRequest,
        MapSetRequest,
    };

    #[test]
    fn both_encodings_round_trip() {
        let reply = ArtifactReply { total: 3, data: canopy_api::Blob(vec![1, 2, 255]) };
        for encoding in [Encoding::MessagePack, Encoding::Json] {
            let bytes = encoding.encode(&reply).unwrap();
            assert_eq!(encoding.decode::<ArtifactReply>(&bytes).unwrap(), reply);
            assert_eq!(encoding.decode_request::<Empty>(b"").unwrap(), Empty {});
        }
    }

    #[test]
    fn garbage_is_invalid_and_says_where() {
        for encoding in [Encoding::MessagePack, Encoding::Json] {
            for garbage in [&b"\xff\xfe\x00garbage"[..], b"\xc1", b"{\"a\":", b"[1,2]"] {
                let error = encoding.decode_request::<DeleteRequest>(garbage).unwrap_err();
                assert_eq!(error.code, Code::Invalid, "{garbage:?}");
            }
            let bytes =
                encoding.encode(&serde_json::json!({"interface": "a b", "hook": "xdp"})).unwrap();
            let error = encoding.decode_request::<DeleteRequest>(&bytes).unwrap_err();
            assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "interface"));
        }
    }

    /// What cannot be read is told as that, in our words, and not as a field that is missing.
    #[test]
    fn requests_that_are_no_value_are_told_as_such() {
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        for (encoding, bytes, said) in [
            (Encoding::Json, &b"{\"a\":"[..], "is not JSON: line 1, column 5: a value is expected"),
            (Encoding::Json, b"{\"a\":\"\xff\"}", "is not JSON: byte 6 is not UTF-8 text"),
            (Encoding::Json, b"{} {}", "is not JSON: line 1, column 4: '{' is not expected behind"),
            (Encoding::Json, deep.as_bytes(), "too many levels within each other"),
            (Encoding::Json, b"\xef\xbb\xbf{}", "is not JSON: line 1, column 1: '\\u{feff}' is"),
            (Encoding::Json, b"\x80", "byte 0 is not UTF-8 text"),
            (
                Encoding::MessagePack,
                b"{\"interface\":\"eth0\"}",
                "it is JSON, and its Content-Type",
            ),
            (Encoding::MessagePack, b"\x80\x80", "1 bytes follow behind its end"),
            (Encoding::MessagePack, b"\xdf\xff\xff\xff\xff", "ends in the middle of a value"),
            (Encoding::MessagePack, b"\x81\xdb\xff\xff\xff\xff", "ends in the middle of a value"),
            (
                Encoding::MessagePack,
                &[b"\x81\xa1a".repeat(500), vec![1]].concat(),
                "deeper than 128",
            ),
            (Encoding::MessagePack, b"\x81\x01\x02", "the name of a field as text"),
            (Encoding::MessagePack, b"\x81\xa1\xff\x02", "not UTF-8"),
        ] {
            for error in [
                encoding.decode_request::<DeleteRequest>(bytes).unwrap_err(),
                encoding.decode_request::<Empty>(bytes).unwrap_err(),
            ] {
                assert!(error.message.starts_with("the request is not "), "{error:?}");
                assert!(error.message.contains(said), "{bytes:?}: {error:?}");
                assert!(!error.message.contains("struct"), "{error:?}");
            }
        }
        let other = Encoding::Json.decode_request::<Empty>(b"\x80").unwrap_err();
        assert!(other.remedy.unwrap().contains("Content-Type: application/msgpack"));
    }

    /// What is said of a request as `T`, path by path.
    fn said<T: DeserializeOwned + JsonSchema + 'static>(
        encoding: Encoding,
        bytes: &[u8],
    ) -> Vec<String> {
        let Err(error) = encoding.decode_request::<T>(bytes) else { return Vec::new() };
        assert_eq!(error.code, Code::Invalid);
        if error.problems.is_empty() {
            let remedy = error.remedy.unwrap_or_default();
            return vec![format!("{}: {} ({remedy})", error.path, error.message)];
        }
        error.problems.iter().map(ToString::to_string).collect()
    }

    /// All mistakes of a request at once: what it has and should not, and what it lacks.
    #[test]
    fn every_unknown_field_is_named_with_its_path() {
        let request = serde_json::json!({
            "interface": "eth0", "hook": "xdp", "dryRun": true, "progam": "bl", "zzz": 1,
        });
        for encoding in [Encoding::MessagePack, Encoding::Json] {
            let said = said::<DeleteRequest>(encoding, &encoding.encode(&request).unwrap());
            assert_eq!(said.len(), 3, "{said:?}");
            assert!(said.iter().any(|one| {
                one == "dryRun: unknown field \"dryRun\" (did you mean \"dry_run\"?)"
            }));
            assert!(said.iter().any(|one| {
                one == "progam: unknown field \"progam\" (did you mean \"program\"?)"
            }));
            assert!(said.iter().any(|one| one.starts_with("zzz: unknown field \"zzz\" (known fi")));
        }
        let request =
            serde_json::json!({ "map": { "interfase": "eth0" }, "entries": [{ "kee": 1 }] });
        let said = said::<MapSetRequest>(Encoding::Json, request.to_string().as_bytes()).join("\n");
        for part in [
            "map.interfase: unknown field \"interfase\" (did you mean \"interface\"?)",
            "entries[0].kee: unknown field \"kee\" (did you mean \"key\"?)",
            "map.interface: \"interface\" is missing",
            "entries[0].key: \"key\" is missing",
        ] {
            assert!(said.contains(part), "lacks {part}:\n{said}");
        }
    }

    #[test]
    fn flattened_fields_are_known_and_others_are_not() {
        #[derive(serde::Deserialize, JsonSchema, Debug)]
        #[allow(dead_code, reason = "read by derive")]
        struct Flat {
            #[serde(flatten)]
            map: canopy_api::wire::MapName,
            limit: Option<u32>,
        }
        let good = r#"{"interface":"eth0","hook":"xdp","program":"a","map":"m","limit":1}"#;
        Encoding::Json.decode_request::<Flat>(good.as_bytes()).unwrap();
        let bad = good.replace("limit", "limits").replace("netns", "netn");
        let said = said::<Flat>(Encoding::Json, bad.as_bytes());
        assert_eq!(said, ["limits: unknown field \"limits\" (did you mean \"limit\"?)"]);
    }

    /// What would be read, and mean something else than was meant.
    #[test]
    fn repeated_positional_and_numbered_fields_are_refused() {
        let twice = br#"{"interface":"eth0","hook":"xdp","dry_run":true,"dry_run":false}"#;
        let told = said::<DeleteRequest>(Encoding::Json, twice);
        assert!(told[0].contains("\"dry_run\" is given twice"), "{told:?}");
        // In what a handler reads for itself, too: the last would win silently.
        let twice = br#"{"document":{"chains":[{"hook":"xdp"}],"chains":[]}}"#;
        let told = said::<ApplyRequest>(Encoding::Json, twice);
        assert!(
            told[0].starts_with("document.chains: field \"chains\" is given twice"),
            "{told:?}"
        );

        let list = serde_json::json!([null, "eth0", "xdp", null, null, false]);
        let nested = serde_json::json!({"map": ["eth0", "xdp", "a", "m"], "keys": []});
        for encoding in [Encoding::MessagePack, Encoding::Json] {
            let told = said::<DeleteRequest>(encoding, &encoding.encode(&list).unwrap());
            assert!(told[0].contains("must be a set of fields, not a list"), "{told:?}");
            let told = said::<MapGetRequest>(encoding, &encoding.encode(&nested).unwrap());
            assert!(told[0].starts_with("map: must be a set of fields, not a list"), "{told:?}");
            let told = said::<Empty>(encoding, &encoding.encode(&serde_json::json!([])).unwrap());
            assert!(told[0].contains("must be a set of fields, not a list"), "{told:?}");
        }
        let numbered = rmp_serde::to_vec(&std::collections::BTreeMap::from([(0, true)])).unwrap();
        let told = said::<DrainRequest>(Encoding::MessagePack, &numbered);
        assert!(told[0].contains("the name of a field as text"), "{told:?}");
    }

    #[test]
    fn a_request_of_mistakes_alone_has_a_short_answer() {
        let fields: serde_json::Map<_, _> =
            (0..50_000).map(|n| (format!("f{n}"), n.into())).collect();
        let bytes = Encoding::Json.encode(&fields).unwrap();
        let error = Encoding::Json.decode_request::<Empty>(&bytes).unwrap_err();
        assert!(serde_json::to_vec(&error).unwrap().len() < 8192, "{}", error.problems.len());
    }

    #[test]
    fn content_types() {
        assert_eq!(Encoding::of(None).unwrap(), Encoding::MessagePack);
        assert_eq!(Encoding::of(Some("Application/JSON; charset=utf-8")).unwrap(), Encoding::Json);
        assert_eq!(Encoding::of(Some("text/xml")).unwrap_err().code, Code::Invalid);
    }
}
