//! Telling the person what goes on: one line a step, with the time it took.

use anyhow::Result;
use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Does one step and says so; the line ends with `ok` and the seconds, or with `FAILED`.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {what:<58} ");
    flush();
    let begin = Instant::now();
    let result = work();
    let took = begin.elapsed().as_secs_f64();
    match &result {
        Ok(_) => println!("{} {took:5.1} s", paint("32", "ok")),
        Err(_) => println!("{}", paint("31", "FAILED")),
    }
    result
}

/// Announces work whose own output follows.
pub fn heading(text: &str) {
    println!("\n{}", paint("1", text));
}

/// Waits until `check` gives a value, at most `limit`; an error tells the last thing it said.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(last) if begin.elapsed() >= limit => {
                anyhow::bail!("{what}: not within {:.0} s; last seen: {last}", limit.as_secs_f64())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Text in a terminal's colour; plain where the output is not a terminal or `NO_COLOR` is set.
pub fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn flush() {
    // A terminal that is gone must not stop the work.
    let _ = std::io::stdout().flush();
}
