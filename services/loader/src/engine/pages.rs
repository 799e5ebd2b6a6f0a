//! The state of the host page by page: each reply to `get` fits into one message of the bus.
//!
//! Chains, selectors and stray pins are listed in an order that does not depend on which there are, and a
//! page begins behind the last item of the one before: what comes or goes between two pages, by a request
//! or by a round of the selectors, moves nothing else. An item that is longer than a page is read in parts.
//! It has to be the same one in all of them, or whoever reads is told to start again.

use super::{Engine, report::Report};
use crate::error::LoaderError;
use canopy_api::{
    ApiError, ChainKey, Code, Digest, Target,
    wire::{
        Divided as _, Divisible, GetReply, GetRequest, LISTED_BEFORE, MetricValue, Offset, Part,
        ProgramStatus, json_length,
    },
};
use canopy_kernel::Kernel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Where it begins within an item: which programs that had, with which settings. Rounds of the
    /// selectors change chains without a new generation of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    programs: Option<Digest>,
    /// Where it begins within the metrics of a program: the series before. They are read anew for each
    /// page, and others may have come or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    series: Option<Series>,
}

/// What tells a time series of a program from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

impl Series {
    /// Where the metrics behind it begin; `None` where it is not there any more.
    fn end(&self, metrics: &[MetricValue]) -> Option<usize> {
        let same = |one: &MetricValue| one.name == self.name && one.labels == self.labels;
        metrics.iter().position(same).map(|index| index + 1)
    }
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

    fn end_before(&mut self, item: Item) {
        let (generation, offset) = (self.generation, Offset::default());
        self.next = Some(Cursor { generation, item, offset, programs: None, series: None });
    }

    /// Where the page begins, if that is within this item.
    fn within(&self, item: &Item) -> Option<&Cursor> {
        self.from.as_ref().filter(|from| from.item == *item && !is_start(&from.offset))
    }

    /// Puts an item on the page, or as much of it as fits where it alone is longer than a page.
    fn put<T: Divisible>(
        &mut self,
        item: Item,
        (mut whole, programs): (T, Digest),
        list: &mut Vec<T>,
    ) -> Result<(), LoaderError> {
        let mut offset = Offset::default();
        if let Some(from) = self.within(&item) {
            if from.programs.as_ref() != Some(&programs) {
                return Err(changed());
            }
            offset = from.offset;
            if offset.metric > 0 {
                let program = whole.programs().get_mut(offset.program);
                let metrics = program.and_then(|program| program.metrics());
                let series = from.series.as_ref().zip(metrics);
                offset.metric =
                    series.and_then(|(series, metrics)| series.end(metrics)).ok_or_else(changed)?;
            }
        }
        let Part { mut part, bytes, rest } = whole.divide(offset, self.room);
        // What does not fit begins a page of its own, and is divided only if it is longer than that.
        if self.any && (bytes > self.room || rest.is_some()) {
            self.end_before(item);
            return Ok(());
        }
        self.any = true;
        self.room = self.room.saturating_sub(bytes);
        if let Some(offset) = rest {
            let cut_program = part.programs().last_mut().filter(|_| offset.metric > 0);
            let final_metric = cut_program.and_then(|program| program.metrics()?.last());
            let series = final_metric
                .map(|metric| Series { name: metric.name.clone(), labels: metric.labels.clone() });
            let (generation, programs) = (self.generation, Some(programs));
            self.next = Some(Cursor { generation, item, offset, programs, series });
        }
        list.push(part);
        Ok(())
    }
}

/// Which programs with which settings: what is divided where a chain is longer than a page, without what
/// is counted.
fn programs_of_chain(programs: &[ProgramStatus]) -> Digest {
    let programs: Vec<_> = programs
        .iter()
        .map(|program| (&program.name, &program.digest, &program.program, &program.config))
        .collect();
    digest(&programs)
}

fn digest(value: &impl Serialize) -> Digest {
    Digest::of(&serde_json::to_vec(value).unwrap_or_default())
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
        let in_part = from.as_ref().filter(|from| !is_start(&from.offset));
        let in_part = in_part.map(|from| (from.generation, from.item.clone()));
        if in_part.as_ref().is_some_and(|(generation, _)| *generation != reply.generation) {
            return Err(changed());
        }
        let mut page = Page {
            generation: reply.generation,
            room: room.saturating_sub(json_length(&reply)),
            from,
            any: false,
            next: None,
        };
        // The rest of a chain or selector that is not there any more.
        let is_there = |item: &Item| match item {
            Item::Chain(key) => reports.iter().any(|report| report.status.key() == *key),
            Item::Selector(target) => selectors.iter().any(|one| one.target() == *target),
            Item::StrayPin(_) => true,
        };
        if in_part.is_some_and(|(_, item)| !is_there(&item)) {
            return Err(changed());
        }
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
            // What is too long for the rest of the page without its metrics is not read for it.
            if page.any && json_length(&report.status) > page.room {
                page.end_before(item);
                break;
            }
            // Maps are read for the programs of this page only.
            let offset = page.within(&item).map_or(Offset::default(), |from| from.offset);
            self.complete_part(&mut report, (&wanted, generation), offset, page.room);
            let mut one = [report];
            self.place(&mut one);
            let [Report { mut status, .. }] = one;
            if let Some(placement) = &mut status.placement {
                placement.before.truncate(LISTED_BEFORE);
            }
            let programs = programs_of_chain(&status.programs);
            page.put(item, (status, programs), &mut reply.chains)?;
        }
        for selector in selectors {
            let item = Item::Selector(selector.target());
            if page.full() {
                break;
            }
            if page.begins_before(&item) {
                let programs = digest(&selector.programs);
                page.put(item, (selector, programs), &mut reply.selectors)?;
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
                    page.end_before(item);
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
