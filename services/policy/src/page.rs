//! Long lists, page by page: an answer has to fit into one message of the bus.

use canopy_api::ApiError;
use canopy_bus::data::Bucket;
use serde::{Serialize, de::DeserializeOwned};

/// What the records of one page may take, in JSON, the longer of the two encodings: half of what a message
/// holds by default.
const PAGE_BYTES: usize = 512 * 1024;
/// Values that are read at once.
const CHUNK: usize = 128;

/// What is asked for: everything behind a key, and how many at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: Option<u32>,
}

/// One page of a bucket, by key, and the key that the next one begins behind.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn page<T: DeserializeOwned, R: Serialize>(
    bucket: &Bucket,
    wanted: Wanted<'_>,
    record: impl Fn(&T) -> (String, R),
) -> Result<(Vec<R>, Option<String>), ApiError> {
    let mut keys = bucket.keys().await?;
    keys.sort_unstable();
    let keys: Vec<String> = keys
        .into_iter()
        .filter(|key| wanted.after.is_none_or(|after| key.as_str() > after))
        .collect();
    let limit = wanted
        .limit
        .map_or(usize::MAX, |limit| usize::try_from(limit.max(1)).unwrap_or(usize::MAX));
    let mut page = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    for chunk in keys.chunks(CHUNK.min(limit)) {
        for value in bucket.some::<T>(chunk.to_vec()).await? {
            let (key, one) = record(&value);
            bytes += serde_json::to_vec(&one).map_or(0, |text| text.len());
            if page.len() >= limit || (bytes > PAGE_BYTES && !page.is_empty()) {
                return Ok((page, last));
            }
            page.push(one);
            last = Some(key);
        }
    }
    Ok((page, None))
}
