//! Lists of packages and searches, page by page.

use super::{Registry, resolving::summary};
use crate::{
    core::{route::route, search::rank},
    error::RegistryError,
    repository::{Repository, Snapshot},
};
use canopy_api::{
    Hook, PackageName,
    wire::{
        ListReply, ListRequest, PackageSummary, RepositoryTrouble, SEARCH_LIMIT, SearchReply,
        SearchRequest, json_length,
    },
};
use canopy_package::IndexEntry;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

/// Package files of which a few words are remembered for lists.
const ABOUT: usize = 10_000;

/// Versions told in one answer.
const VERSIONS: usize = 3_000;

/// What a list says of a package.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    description: String,
    hooks: Vec<Hook>,
    keywords: Vec<String>,
}
impl Registry {
    /// A page of the packages and their versions, by name: at most about `room` bytes of JSON, at least
    /// one package.
    pub async fn list(
        &self,
        request: &ListRequest,
        room: usize,
    ) -> Result<ListReply, RegistryError> {
        let (all, unavailable) = self.offered(request.package.as_ref()).await;
        if let (Some(name), []) = (&request.package, all.as_slice()) {
            let trouble = unavailable.first().map(|t| (t.repository.clone(), t.reason.clone()));
            let near = self.near(name);
            return Err(RegistryError::UnknownPackage { name: name.clone(), near, trouble });
        }
        // How many versions are listed depends on the number of packages, not on the page.
        let each = (VERSIONS / all.len().max(1)).clamp(1, 1_000);
        let mut page = Page::new(room);
        let behind = |name: &PackageName| {
            request.cursor.as_ref().is_none_or(|cursor| name.as_str() > cursor.as_str())
        };
        let mut lost = BTreeMap::new();
        for (repository, snapshot, name) in all.iter().filter(|(_, _, name)| behind(name)) {
            let lost = lost.entry(repository.name.as_str()).or_default();
            let mut package = self.summary(repository, snapshot, name, lost).await;
            keep_versions(&mut package, each);
            if !page.add(package) {
                break;
            }
        }
        let Page { packages, next, .. } = page;
        Ok(ListReply { packages, unavailable, next })
    }

    /// Every package that is offered, or the one that is named, by name; and what is wrong with
    /// repositories.
    async fn offered(&self, only: Option<&PackageName>) -> (Vec<Offered>, Vec<RepositoryTrouble>) {
        self.refresh().await;
        let now = (self.now)();
        let mut packages = Vec::new();
        let mut unavailable = Vec::new();
        for (place, repository) in self.repositories.iter().enumerate() {
            let (snapshot, trouble) = repository.current(now);
            if let Some(trouble) = trouble {
                unavailable.push(RepositoryTrouble {
                    repository: repository.name.clone(),
                    reason: trouble.to_string(),
                });
            }
            let Some(snapshot) = snapshot else { continue };
            for name in snapshot.index.names() {
                let wanted = only.is_none_or(|wanted| wanted == name);
                if wanted && route(&self.patterns, name) == Some(place) {
                    packages.push((Arc::clone(repository), Arc::clone(&snapshot), name.clone()));
                }
            }
        }
        packages.sort_by(|(_, _, a), (_, _, b)| a.cmp(b));
        (packages, unavailable)
    }

    async fn summary(
        &self,
        repository: &Arc<Repository>,
        snapshot: &Arc<Snapshot>,
        name: &PackageName,
        lost: &mut Option<String>,
    ) -> PackageSummary {
        let newest = snapshot.index.versions(name).find(|entry| !entry.yanked);
        let about = match newest {
            Some(entry) => self.about(repository, snapshot, entry, lost).await,
            None => About::default(),
        };
        PackageSummary {
            name: name.clone(),
            description: about.description,
            hooks: about.hooks,
            keywords: about.keywords,
            repository: repository.name.clone(),
            versions: snapshot.index.versions(name).map(summary).collect(),
            older: 0,
        }
    }

    /// What a list says of a package; `lost` is why its repository's files cannot be had any more.
    async fn about(
        &self,
        repository: &Arc<Repository>,
        snapshot: &Arc<Snapshot>,
        entry: &IndexEntry,
        lost: &mut Option<String>,
    ) -> About {
        let known = || self.about.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(about) = known().get(&entry.digest) {
            return about.clone();
        }
        let unknown = |why: &str| About { description: format!("({why})"), ..About::default() };
        if let Some(why) = lost {
            return unknown(why);
        }
        match self.artifact_of(repository, snapshot, entry).await {
            Ok(artifact) => {
                let manifest = &artifact.manifest;
                let hooks: BTreeSet<Hook> =
                    manifest.programs.iter().flat_map(|program| &program.hooks).copied().collect();
                let about = About {
                    description: manifest.description.clone(),
                    hooks: hooks.into_iter().collect(),
                    keywords: manifest.keywords.clone(),
                };
                let mut known = known();
                if known.len() >= ABOUT {
                    known.clear();
                }
                known.insert(entry.digest.clone(), about.clone());
                about
            }
            Err(error) => {
                // One answer waits for a store that hangs once, not once for every package.
                *lost = error.store_hangs().then(|| error.to_string());
                unknown(&error.to_string())
            }
        }
    }

    /// A page of the packages that meet what is looked for, the best first: at most [`SEARCH_LIMIT`], and
    /// about `room` bytes of JSON.
    pub async fn search(
        &self,
        request: &SearchRequest,
        room: usize,
    ) -> Result<SearchReply, RegistryError> {
        let from = request.cursor.as_deref().map(search_cursor).transpose()?;
        let (all, unavailable) = self.offered(None).await;
        let each = (VERSIONS / all.len().max(1)).clamp(1, 1_000);
        let mut found = Vec::new();
        let mut lost = BTreeMap::new();
        for (repository, snapshot, name) in &all {
            let lost = lost.entry(repository.name.as_str()).or_default();
            let mut package = self.summary(repository, snapshot, name, lost).await;
            if let Some(rank) = rank(request, &package) {
                keep_versions(&mut package, each);
                found.push((rank, package));
            }
        }
        // The list is by name, and stays so among equals.
        found.sort_by_key(|(rank, _)| *rank);
        if let Some((rank, name)) = &from {
            found.retain(|(of, package)| (*of, package.name.as_str()) > (*rank, *name));
        }
        let mut page = Page::new(room);
        let number = found.len();
        let mut reached = 0;
        for (rank, package) in found.into_iter().take(SEARCH_LIMIT) {
            if !page.add(package) {
                break;
            }
            reached = rank;
        }
        let packages = page.packages;
        let more = number.saturating_sub(packages.len()) as u64;
        let next = packages.last().filter(|_| more > 0);
        let next = next.map(|package| format!("{reached} {}", package.name));
        Ok(SearchReply { packages, more, unavailable, next })
    }
}

/// A package of a repository.
type Offered = (Arc<Repository>, Arc<Snapshot>, PackageName);

/// A page of packages.
struct Page {
    packages: Vec<PackageSummary>,
    room: usize,
    left: usize,
    /// Behind which package the next page begins.
    next: Option<String>,
}

impl Page {
    fn new(room: usize) -> Self {
        Self { packages: Vec::new(), room, left: room, next: None }
    }

    /// Puts a package on the page; false where it is full.
    fn add(&mut self, mut package: PackageSummary) -> bool {
        // A package that is longer than a page has fewer of its versions.
        while json_length(&package) > self.room && package.versions.len() > 1 {
            let half = package.versions.len() / 2;
            keep_versions(&mut package, half);
        }
        let length = json_length(&package).saturating_add(1);
        if let Some(last) = self.packages.last().filter(|_| length > self.left) {
            self.next = Some(last.name.to_string());
            return false;
        }
        self.left = self.left.saturating_sub(length);
        self.packages.push(package);
        true
    }
}

/// Leaves out old versions, and says how many.
fn keep_versions(package: &mut PackageSummary, number: usize) {
    package.older += package.versions.len().saturating_sub(number) as u64;
    package.versions.truncate(number);
}

/// Behind which package a page of a search begins: how well it answers, and its name.
fn search_cursor(text: &str) -> Result<(u32, &str), RegistryError> {
    let read = text.split_once(' ').and_then(|(rank, name)| Some((rank.parse().ok()?, name)));
    read.ok_or(RegistryError::Cursor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::{Digest, wire::VersionSummary};

    fn package(name: &str, versions: u64) -> PackageSummary {
        let version = |number: u64| VersionSummary {
            version: format!("{number}.0.0"),
            digest: Digest::of(&number.to_be_bytes()),
            length: 1,
            yanked: false,
        };
        PackageSummary {
            name: name.parse().unwrap(),
            description: String::new(),
            hooks: Vec::new(),
            keywords: Vec::new(),
            repository: "main".to_owned(),
            versions: (1..=versions).rev().map(version).collect(),
            older: 0,
        }
    }

    #[test]
    fn a_page_has_one_package_however_little_room_there_is() {
        let mut page = Page::new(1);
        assert!(page.add(package("a", 8)));
        assert!(!page.add(package("b", 1)));
        assert_eq!(page.next.as_deref(), Some("a"));
        let kept = &page.packages[0];
        assert_eq!((kept.versions[0].version.as_str(), kept.versions.len()), ("8.0.0", 1));
        assert_eq!(kept.older, 7, "what is left out is counted");
    }

    #[test]
    fn a_page_is_filled_up_to_its_room() {
        let length = json_length(&package("a", 2)) + 1;
        let mut page = Page::new(2 * length);
        assert!(page.add(package("a", 2)) && page.add(package("b", 2)));
        assert!(!page.add(package("c", 2)));
        assert_eq!((page.packages.len(), page.next.as_deref()), (2, Some("b")));
        assert_eq!(page.packages[1].versions.len(), 2);
    }

    #[test]
    fn a_search_cursor_is_a_rank_and_a_name() {
        assert_eq!(search_cursor("3 wall").unwrap(), (3, "wall"));
        for wrong in ["", "wall", "x wall", "-1 wall"] {
            assert!(matches!(search_cursor(wrong), Err(RegistryError::Cursor)), "{wrong}");
        }
    }
}
