//! `canopy version`

use crate::{
    cli::{ConnectionArgs, VersionArgs},
    commands::on_bus,
    context::Settings,
    failure::{Exit, Failure},
    output::{Answer, Screen, Table, text},
};
use canopy_api::{
    endpoint::{cert_monitor, enforcer, loader, policy, registry},
    wire::{Empty, Version},
};
use serde::Serialize;

/// This program's version, then every service's that answers.
pub fn run(
    args: &VersionArgs,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let mut versions = vec![Version {
        service: "canopy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: None,
    }];
    let settings = Settings::gather(connection)?;
    if args.client || settings.complete().is_err() {
        screen.show(&Versions(versions), args.output.output)?;
        return Ok(Exit::Done);
    }
    on_bus(&settings, connection.timeout, async |remote| {
        let central = [
            remote.ask_centre::<registry::Version>(&Empty {}).await,
            remote.ask_centre::<policy::Version>(&Empty {}).await,
            remote.ask_centre::<cert_monitor::Version>(&Empty {}).await,
        ];
        for answer in central {
            match answer {
                Ok(version) => versions.push(version),
                Err(failure) => screen.fail(&failure),
            }
        }
        for (_, answer) in remote.ask_all::<loader::Version>(&Empty {}).await?.answers {
            versions.extend(answer.ok());
        }
        for (_, answer) in remote.ask_all::<enforcer::Version>(&Empty {}).await?.answers {
            versions.extend(answer.ok());
        }
        screen.show(&Versions(versions), args.output.output)?;
        Ok(Exit::Done)
    })
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
