//! Work that blocks, from async code.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task,
};

/// Work ended in a panic.
pub type Panic = Box<dyn Any + Send>;

/// Runs work that blocks for some milliseconds: on this thread, which gives its other tasks away first, so
/// that nobody waits for it and it waits for no other thread to wake up. A runtime of one thread cannot do
/// that; there it runs on a thread of its own. Once begun it goes on to its end, whatever becomes of the
/// caller.
///
/// Other parts of the same task wait meanwhile.
///
/// # Errors
/// With the panic the work ended in.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panic> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        return catch_unwind(AssertUnwindSafe(|| task::block_in_place(work)));
    }
    task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => panic,
        Err(error) => Box::new(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn work_and_panic() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        let panic = blocking(|| -> u8 { panic!("lost") }).await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"lost"));
    }

    #[tokio::test]
    async fn works_on_one_thread() {
        work_and_panic().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_do_not_wait() {
        work_and_panic().await;
        let (done, wait) = std::sync::mpsc::channel();
        let work = tokio::spawn(blocking(move || wait.recv_timeout(Duration::from_secs(10))));
        // The only worker is the one that blocks.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.send(()).unwrap();
        });
        assert_eq!(work.await.unwrap().unwrap(), Ok(()), "nobody else had a turn");
    }
}
