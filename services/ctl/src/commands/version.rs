//! `canopy version`

use crate::{
    cli::{ConnectionArgs, VersionArgs},
    commands::{get::gathered, on_bus},
    context::Settings,
    failure::{Exit, Failure},
    output::{Answer, Screen, Table, text},
};
use canopy_api::{
    endpoint::{Service, cert_monitor, enforcer, loader, policy, registry},
    wire::{Version, VersionRequest},
};
use serde::Serialize;

/// This program's version, then every service's that answers. Those that do not are named, and the exit code
/// says so.
pub fn run(
    args: &VersionArgs,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let mut versions = vec![Version {
        service: "canopy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: None,
        fields: None,
    }];
    let settings = Settings::gather(connection)?;
    if args.client || settings.complete().is_err() {
        screen.show(&Versions(versions), args.output.output)?;
        return Ok(Exit::Done);
    }
    on_bus(&settings, connection.timeout, async |remote| {
        let central = [
            remote.ask_centre::<registry::Version>(&VersionRequest::default()).await,
            remote.ask_centre::<policy::Version>(&VersionRequest::default()).await,
            remote.ask_centre::<cert_monitor::Version>(&VersionRequest::default()).await,
        ];
        let mut exit = Exit::Done;
        let mut fail = |failure: &Failure| {
            screen.fail(failure);
            exit = Exit::Partly;
        };
        for answer in central {
            match answer {
                Ok(version) => versions.push(version),
                Err(failure) => fail(&failure),
            }
        }
        let loaders = remote.ask_all::<loader::Version>(&VersionRequest::default()).await;
        let enforcers = remote.ask_all::<enforcer::Version>(&VersionRequest::default()).await;
        for (service, all) in [(Service::Loader, loaders), (Service::Enforcer, enforcers)] {
            let all = match all {
                Ok(all) => all,
                Err(failure) => {
                    fail(&failure);
                    continue;
                }
            };
            // A fleet without hosts has none that could be missing.
            if all.answers.is_empty() && all.missing.is_empty() {
                if all.expected.is_none() {
                    fail(&no_answer(service));
                }
                continue;
            }
            if all.answers.is_empty() {
                fail(&no_answer(service));
                continue;
            }
            let (found, trouble) = gathered(all)?;
            versions.extend(found);
            trouble.iter().for_each(&mut fail);
        }
        screen.show(&Versions(versions), args.output.output)?;
        Ok(exit)
    })
}

fn no_answer(service: Service) -> Failure {
    Failure::new(Exit::Unavailable, format!("the {service} of no host answers"))
        .fix(format!("see that canopy-{service} runs on the hosts and is connected"))
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Versions(Vec<Version>);

impl Answer for Versions {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([text("SERVICE"), text("HOST"), text("VERSION")]);
        for version in &self.0 {
            table.row([
                version.service.clone().into(),
                version.host.as_ref().map(ToString::to_string).unwrap_or_default().into(),
                version.version.clone().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|version| format!("{}@{}", version.service, version.version)).collect()
    }
}
