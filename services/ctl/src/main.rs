//! The program `canopy`.

use canopy_ctl::{
    cli::{Cli, expand::expand, usage},
    commands,
    failure::Exit,
    output::Screen,
};
use clap::{CommandFactory as _, Parser as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Whose the files are that somebody names is for who names them to know.
    canopy_files::accept_any_owner();
    let mut root = Cli::command();
    root.build();
    let words = expand(&root, std::env::args_os().collect());
    let mut screen = Screen::standard();
    if usage::wants_json(&words) {
        screen.errors_as_json();
    }
    let outcome = match Cli::try_parse_from(&words) {
        Ok(cli) => commands::run(cli, &mut screen),
        Err(error) => match usage::failure(&error, &root, &words) {
            Some(failure) => Err(failure),
            // Help, or the version.
            None => error.exit(),
        },
    };
    let exit = outcome.unwrap_or_else(|failure| {
        screen.fail(&failure);
        failure.exit
    });
    screen.finish(exit);
    match exit {
        Exit::Done => ExitCode::SUCCESS,
        other => ExitCode::from(other as u8),
    }
}
