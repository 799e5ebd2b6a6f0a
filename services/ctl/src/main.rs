//! The program `canopy`.

use canopy_ctl::{cli::Cli, commands, failure::Exit, output::Screen};
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut screen = Screen::standard();
    let exit = commands::run(cli, &mut screen).unwrap_or_else(|failure| {
        screen.fail(&failure);
        failure.exit
    });
    match exit {
        Exit::Done => ExitCode::SUCCESS,
        other => ExitCode::from(other as u8),
    }
}
