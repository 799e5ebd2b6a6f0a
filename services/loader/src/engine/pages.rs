//! The state of the host page by page: each reply to `get` fits into one message of the bus.

use super::{Engine, report::Report};
use crate::error::LoaderError;
use canopy_api::{
    ApiError, ChainKey, Code, Target,
    wire::{Divisible, GetReply, GetRequest, LISTED_BEFORE, Offset, Part, json_length},
};
use canopy_kernel::Kernel;
use serde::{Deserialize, Serialize};

/// Where a page begins: what `next` says, as JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// Generation of the host when the page before was read. A chain or selector that was read in part
    /// must be the same one when the rest is read.
    generation: u64,
    /// The first item of the page.
    item: Item,
    /// Where in it.
    #[serde(default, skip_serializing_if = "is_start")]
    offset: Offset,
}

fn is_start(offset: &Offset) -> bool {
    *offset == Offset::default()
}

/// What a reply lists, in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Item {
    Chain(ChainKey),
    Selector(Target),
    /// By its path: it and those behind it.
    StrayPin(String),
}

impl Cursor {
    fn parse(text: &str) -> Result<Self, LoaderError> {
        let unreadable = |_| {
            let error = ApiError::new(Code::Invalid, "the cursor is not the \"next\" of a reply");
            LoaderError::from(error.at("cursor").remedy("leave it out for the first page"))
        };
        serde_json::from_str(text).map_err(unreadable)
    }

    fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }
}

/// A page that is being filled.
struct Page {
    generation: u64,
    room: usize,
    from: Option<Cursor>,
    any: bool,
    next: Option<Cursor>,
}

impl Page {
    /// Whether an item is on this page or behind it.
    fn begins_before(&self, item: &Item) -> bool {
        self.from.as_ref().is_none_or(|from| from.item <= *item)
    }

    fn full(&self) -> bool {
        self.next.is_some()
    }

    fn end_before(&mut self, item: Item, offset: Offset) {
        self.next = Some(Cursor { generation: self.generation, item, offset });
    }

    /// Puts an item on the page, or as much of it as fits where it alone is longer than a page.
    fn put<T: Divisible>(&mut self, item: Item, whole: T, list: &mut Vec<T>) {
        let offset = match &self.from {
            Some(from) if from.item == item => from.offset,
            Some(_) | None => Offset::default(),
        };
        let Part { part, bytes, rest } = whole.divide(offset, self.room);
        // What does not fit begins a page of its own, and is divided only if it is longer than that.
        if self.any && (bytes > self.room || rest.is_some()) {
            self.end_before(item, offset);
            return;
        }
        self.any = true;
        self.room = self.room.saturating_sub(bytes);
        list.push(part);
        if let Some(rest) = rest {
            self.end_before(item, rest);
        }
    }
}

/// The rest of an item is asked for, and the item is another one now.
fn changed() -> LoaderError {
    ApiError::new(
        Code::Conflict,
        "the host was changed while a chain longer than one page was read",
    )
    .at("cursor")
    .remedy("start again from the first page")
    .into()
}

impl<K: Kernel> Engine<K> {
    /// A page of the state of the host, at most about `room` bytes of JSON: at least one item, or a part
    /// of one.
    ///
    /// # Errors
    /// When the kernel cannot be read, the cursor is none, or what it points into was changed.
    pub fn get_page(&self, request: &GetRequest, room: usize) -> Result<GetReply, LoaderError> {
        let from = request.cursor.as_deref().map(Cursor::parse).transpose()?;
        let (reports, running) = self.statuses(request).map_err(LoaderError::kernel)?;
        let mut reply = self.host_state(request);
        let selectors = std::mem::take(&mut reply.selectors);
        let mut stray_pins = std::mem::take(&mut reply.stray_pins);
        let in_part = from.as_ref().filter(|from| from.offset != Offset::default());
        if in_part.is_some_and(|from| from.generation != reply.generation) {
            return Err(changed());
        }
        let mut page = Page {
            generation: reply.generation,
            room: room.saturating_sub(json_length(&reply)),
            from,
            any: false,
            next: None,
        };
        let mut reports: Vec<_> = reports.into_iter().zip(running).collect();
        reports.sort_by_key(|(report, _)| report.status.key());
        for (mut report, (wanted, generation)) in reports {
            let item = Item::Chain(report.status.key());
            if page.full() {
                break;
            }
            if !page.begins_before(&item) {
                continue;
            }
            // Maps are read for the chains of this page only.
            self.complete(&mut report, &wanted, generation);
            let mut one = [report];
            self.place(&mut one);
            let [Report { mut status, .. }] = one;
            if let Some(placement) = &mut status.placement {
                placement.before.truncate(LISTED_BEFORE);
            }
            page.put(item, status, &mut reply.chains);
        }
        for selector in selectors {
            let item = Item::Selector(selector.target());
            if page.full() {
                break;
            }
            if page.begins_before(&item) {
                page.put(item, selector, &mut reply.selectors);
            }
        }
        stray_pins.sort_unstable();
        for path in stray_pins {
            let item = Item::StrayPin(path.clone());
            if page.full() {
                break;
            }
            if page.begins_before(&item) {
                let bytes = json_length(&path).saturating_add(1);
                if page.any && bytes > page.room {
                    page.end_before(item, Offset::default());
                    break;
                }
                page.any = true;
                page.room = page.room.saturating_sub(bytes);
                reply.stray_pins.push(path);
            }
        }
        reply.next = page.next.as_ref().and_then(Cursor::text);
        Ok(reply)
    }
}
