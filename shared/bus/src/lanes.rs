//! Connections of a service: requests of a class come over one of their own where there are many to send them.
//!
//! A connection carries messages in their order. What a flood of reads leaves on its way here would be in
//! front of every change, and what any flood leaves in front of every answer that this service waits for
//! itself.

use crate::{
    config::BusError,
    connection::{Bus, Link},
};
use canopy_api::endpoint::Class;
use futures::future::select_all;
use std::time::Duration;
use tokio::sync::watch;

/// The connections.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    /// For everything that the service itself sends and asks.
    main: Bus,
    read: Bus,
    change: Option<Bus>,
    internal: Option<Bus>,
}

impl Lanes {
    /// Opens those beside the first that requests of these classes need.
    pub(crate) async fn open(main: &Bus, classes: &[Class]) -> Result<Self, BusError> {
        let wanted = |some: &[Class]| classes.iter().any(|class| some.contains(class));
        let beside = async |wanted: bool| {
            if wanted { main.beside().await.map(Some) } else { Ok(None) }
        };
        Ok(Self {
            main: main.clone(),
            read: main.beside().await?,
            change: beside(wanted(&[Class::Write, Class::Publish, Class::Admin])).await?,
            internal: beside(wanted(&[Class::Internal])).await?,
        })
    }

    /// Where requests of a class come, and their answers go.
    pub(crate) fn of(&self, class: Class) -> &Bus {
        let own = match class {
            Class::Read => Some(&self.read),
            Class::Internal => self.internal.as_ref(),
            Class::Write | Class::Publish | Class::Admin => self.change.as_ref(),
        };
        own.unwrap_or(&self.main)
    }

    /// The first, and those beside it.
    fn all(&self) -> impl Iterator<Item = &Bus> {
        std::iter::once(&self.main).chain(self.beside())
    }

    fn beside(&self) -> impl Iterator<Item = &Bus> {
        std::iter::once(&self.read).chain(&self.change).chain(&self.internal)
    }

    /// Waits until all of them carry messages.
    pub(crate) async fn wait_ready(&self, limit: Duration) -> Result<(), BusError> {
        for lane in self.all() {
            lane.wait_ready(limit).await?;
        }
        Ok(())
    }

    /// Whether the server refused a subscription.
    pub(crate) fn subscription_refused(&self, subject: &str) -> bool {
        self.all().any(|lane| lane.shared.subscription_refused(subject))
    }

    /// The state of each.
    pub(crate) fn watch(&self) -> Vec<watch::Receiver<Link>> {
        self.all().map(Bus::watch_link).collect()
    }

    /// Sends what is queued, and ends those beside the first.
    pub(crate) async fn end(&self) {
        for lane in self.all() {
            lane.flush_at_end().await;
        }
        for lane in self.beside() {
            lane.close().await;
        }
    }
}

/// Waits until the state of one changes; false when there is none any more.
pub(crate) async fn changed(links: &mut [watch::Receiver<Link>]) -> bool {
    let changes = links.iter_mut().map(|link| Box::pin(link.changed()));
    select_all(changes).await.0.is_ok()
}

/// Whether all are up.
pub(crate) fn all_connected(links: &mut [watch::Receiver<Link>]) -> bool {
    let mut all = true;
    for link in links {
        all &= *link.borrow_and_update() == Link::Connected;
    }
    all
}
