//! Ctrl-C ends what goes on until it is interrupted: at once, whatever is waited for.

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
};

/// From now on an interrupt ends the process with exit code 0. It is waited for beside everything else: a
/// question that nobody answers, or a reader that does not read, does not keep it waiting.
pub fn end_on_ctrl_c() {
    // Without a thread the signal ends the process by itself.
    let _ = thread::Builder::new().name("interrupt".to_owned()).spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
            return;
        };
        if runtime.block_on(tokio::signal::ctrl_c()).is_err() {
            return;
        }
        if io::stderr().is_terminal() {
            // What was going on is no more: its line, and colours.
            let _ = write!(io::stderr(), "\r\x1b[K\x1b[0m");
        }
        std::process::exit(0);
    });
}
