//! Payloads: MessagePack with field names, or JSON.

use canopy_api::{
    document,
    error::{ApiError, Code},
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// How deep a payload may nest; what `serde_json` allows. The library's own limit for MessagePack
/// (1024) overflows the stack of a task.
const MAX_DEPTH: usize = 128;

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
            Self::MessagePack => rmp_serde::to_vec_named(value).map_err(|e| e.to_string()),
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
    /// works. Where it cannot be decoded the error names every mistake with its path.
    pub(crate) fn decode_request<T: DeserializeOwned + JsonSchema + 'static>(
        self,
        bytes: &[u8],
    ) -> Result<T, ApiError> {
        let empty: &[u8] = match self {
            Self::MessagePack => &[0x80],
            Self::Json => b"{}",
        };
        let bytes = if bytes.is_empty() { empty } else { bytes };
        let error = match self.decode(bytes) {
            Ok(request) => return Ok(request),
            Err(error) => error,
        };
        // Not what was expected. If it is a value at all, the schema says where it differs.
        if let Ok(value) = self.decode::<serde_json::Value>(bytes)
            && let Err(problems) = document::check::<T>(value)
        {
            return Err(ApiError::invalid(problems));
        }
        let format = match self {
            Self::MessagePack => "MessagePack",
            Self::Json => "JSON",
        };
        Err(ApiError::new(Code::Invalid, format!("the request is not the {format} expected: {error}"))
            .remedy("send MessagePack with field names, or JSON with Content-Type: application/json; docs/subjects.md has the schema"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::wire::{ArtifactReply, DeleteRequest, Empty};

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

    #[test]
    fn content_types() {
        assert_eq!(Encoding::of(None).unwrap(), Encoding::MessagePack);
        assert_eq!(Encoding::of(Some("Application/JSON; charset=utf-8")).unwrap(), Encoding::Json);
        assert_eq!(Encoding::of(Some("text/xml")).unwrap_err().code, Code::Invalid);
    }
}
