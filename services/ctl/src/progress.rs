//! Says what is going on when it takes longer than a second, on standard error.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Silence before the first word.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where there is no terminal to redraw a line on, say it again this often.
const REPEAT: u64 = 10;

/// Whether nobody is told: standard error is for a program.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on nothing is said.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// While this lives, a person who waits is told for what.
pub struct Progress {
    done: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Begins; `what` reads as in "applying to web1".
    pub fn start(what: impl Into<String>) -> Self {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        if SILENT.load(Ordering::Relaxed) {
            return Self { done, thread: None };
        }
        let theirs = Arc::clone(&done);
        let what = canopy_api::text::shown(&what.into()).into_owned();
        let thread = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || report(&what, &theirs));
        Self { done, thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.done.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.done.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn report(what: &str, (done, changed): &(Mutex<bool>, Condvar)) {
    let terminal = io::stderr().is_terminal();
    let mut guard = done.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seconds = 0;
    while !*guard {
        let (next, timed_out) =
            changed.wait_timeout(guard, PATIENCE).unwrap_or_else(PoisonError::into_inner);
        guard = next;
        if timed_out.timed_out() && !*guard {
            seconds += 1;
            if terminal {
                let _ = write!(io::stderr(), "\r{what} ... {seconds} s");
            } else if seconds % REPEAT == 1 {
                let _ = writeln!(io::stderr(), "{what} ... {seconds} s");
            }
        }
    }
    if terminal && seconds > 0 {
        // Carriage return, and erase to the end of the line (ECMA-48 EL).
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
