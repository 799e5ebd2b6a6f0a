//! What each command does.

pub mod apply;
pub mod audit;
pub mod config;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod doctor;
pub mod drain;
pub mod follow;
pub mod get;
pub mod host;
pub mod map;
pub mod package;
pub mod partly;
pub mod policy;
pub mod stored_audit;
pub mod token;
pub mod top;
pub mod version;

use crate::{
    cli::{
        Cli, Command, ConnectionArgs, GenerateCommand, MapCommand, PackageCommand, PolicyCommand,
        TrustCommand,
    },
    complete,
    context::{ContextFile, Settings},
    failure::{Exit, Failure, io_reason},
    input::Input,
    interrupt,
    output::{self, Screen},
    reference,
    remote::Remote,
};
use canopy_api::wire::SearchRequest;
use std::time::Duration;

/// Runs the command and says how it went.
pub fn run(cli: Cli, screen: &mut Screen) -> Result<Exit, Failure> {
    let connection = cli.connection;
    match cli.command {
        // Documents are read and checked before anything is connected or sent.
        Command::Apply(args) => {
            let input = Input::read(&args.files)?;
            connected(&connection, async |remote| apply::run(&args, &input, remote, screen).await)
        }
        Command::Diff(args) => {
            let input = Input::read(&args.files)?;
            connected(&connection, async |remote| diff::run(&args, &input, remote, screen).await)
        }
        Command::Delete(args) => {
            let input = if args.files.is_empty() { None } else { Some(Input::read(&args.files)?) };
            connected(&connection, async |remote| {
                delete::run(&args, input.as_ref(), remote, screen).await
            })
        }
        Command::Get(args) => {
            if args.watch {
                interrupt::end_on_ctrl_c();
            }
            connected(&connection, async |remote| get::run(&args, remote, screen).await)
        }
        Command::Top(args) => {
            top::check(&args)?;
            interrupt::end_on_ctrl_c();
            connected(&connection, async |remote| top::run(&args, remote, screen).await)
        }
        Command::Describe(args) => {
            connected(&connection, async |remote| describe::run(&args, remote, screen).await)
        }
        Command::Drain(args) => {
            connected(&connection, async |remote| drain::run(&args, remote, screen).await)
        }
        Command::Undrain(args) => {
            let args = drain::undone(&args);
            connected(&connection, async |remote| drain::run(&args, remote, screen).await)
        }
        Command::Map(command) => {
            if matches!(command, MapCommand::Follow { .. }) {
                interrupt::end_on_ctrl_c();
            }
            let entries = map::read(&command)?;
            connected(&connection, async |remote| map::run(&command, entries, remote, screen).await)
        }
        Command::Token(command) => {
            let binding = token::read(&command)?;
            connected(&connection, async |remote| {
                token::run(&command, binding, remote, screen).await
            })
        }
        Command::Host(command) => host::run(&command, &connection, screen),
        Command::Package(command) => on_packages(command, &connection, screen),
        Command::Audit(command) => match audit::offline(&command, screen) {
            Some(done) => done,
            None => connected(&connection, async |remote| {
                stored_audit::run(&command, remote, screen).await
            }),
        },
        Command::Policy(command) => match (policy::offline(&command, screen), command) {
            (Some(done), _) => done,
            (None, PolicyCommand::Explain(args)) => {
                connected(&connection, async |remote| policy::explain(&args, remote, screen).await)
            }
            (None, _) => Err(Failure::new(Exit::Failed, "this needs no connection")),
        },
        Command::Doctor(args) => doctor::run(&args, &connection, screen),
        Command::Config(command) => config::run(&command, &connection, screen),
        Command::Completion { shell } => {
            screen.print(complete::script(&shell))?;
            Ok(Exit::Done)
        }
        Command::Complete { words } => {
            for candidate in complete::candidates(&words, &connection) {
                screen.line(&candidate)?;
            }
            Ok(Exit::Done)
        }
        Command::Version(args) => version::run(&args, &connection, screen),
        Command::Generate(command) => generate(&command, screen),
    }
}

fn connected(
    connection: &ConnectionArgs,
    work: impl AsyncFnOnce(&Remote) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    on_bus(&Settings::gather(connection)?, connection.timeout, work)
}

/// `package`: what asks the registry needs a connection, the rest none.
fn on_packages(
    command: PackageCommand,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        PackageCommand::Show { package, output } => connected(connection, async |remote| {
            describe::package(&package, output.output, remote, screen).await
        }),
        PackageCommand::List { package, output } => connected(connection, async |remote| {
            get::packages(package.as_ref(), output.output, remote, screen).await
        }),
        PackageCommand::Search { words, hook, keyword, output } => {
            let request = SearchRequest { words, hook, keyword, cursor: None };
            connected(connection, async |remote| {
                get::search(&request, output.output, remote, screen).await
            })
        }
        PackageCommand::Refresh { output } => {
            connected(connection, async |remote| get::refresh(output.output, remote, screen).await)
        }
        PackageCommand::Trust(TrustCommand::ResetIndex(args)) => {
            connected(connection, async |remote| {
                package::trust::reset_index(&args, remote, screen).await
            })
        }
        command => package::run(&command, connection, screen),
    }
}

/// Connects, works, and ends the connection in order.
pub(crate) fn on_bus<T>(
    settings: &Settings,
    timeout: Option<Duration>,
    work: impl AsyncFnOnce(&Remote) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot start: {}", io_reason(&error)))
    })?;
    runtime.block_on(async {
        let remote = Remote::connect(settings, timeout).await?;
        let outcome = work(&remote).await;
        remote.close().await;
        outcome
    })
}

fn generate(command: &GenerateCommand, screen: &mut Screen) -> Result<Exit, Failure> {
    let text = match command {
        GenerateCommand::CliReference => reference::cli_markdown(),
        GenerateCommand::ContextSchema => output::json(&schemars::schema_for!(ContextFile))?,
        GenerateCommand::PackageSchema => {
            output::json(&schemars::schema_for!(canopy_package::Manifest))?
        }
        GenerateCommand::IndexSchema => {
            output::json(&schemars::schema_for!(canopy_package::Index))?
        }
        GenerateCommand::DesiredSchema => {
            output::json(&schemars::schema_for!(canopy_api::DesiredState))?
        }
        GenerateCommand::AdmissionRulesSchema => {
            output::json(&schemars::schema_for!(canopy_admission::RuleSet))?
        }
        GenerateCommand::AdmissionCasesSchema => {
            output::json(&schemars::schema_for!(canopy_admission::Cases))?
        }
    };
    screen.print(&text)?;
    Ok(Exit::Done)
}
