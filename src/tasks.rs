//! Who owns spawned tasks: a node's tracker, so that stopping waits for every one of them.

use crate::request_id;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Cheap to clone. `tokio::spawn` is a disallowed method; this is the way.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// The task works for the request that its caller works for, if any.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(request_id::carried(future))
    }

    /// Runs where it is awaited. When that is given up, what is left of it runs to its end as a task,
    /// which costs only those who leave.
    pub fn to_the_end<F>(&self, future: F) -> ToTheEnd<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        ToTheEnd {
            work: Some(Box::pin(request_id::carried(future))),
            tracker: self.tracker.clone(),
        }
    }

    /// For work that blocks a thread: files, sled.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Ends when the node is told to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells every task to stop, and waits until all have.
    pub async fn stop_and_wait(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Of `Tasks::to_the_end`.
pub struct ToTheEnd<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tracker: TaskTracker,
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken while it runs: one that panics is not run again.
        let mut work = self.work.take().expect("not polled after its end");
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.tracker.spawn_on(work, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_is_to_run_to_its_end_does_so_also_without_its_caller() {
        let tasks = Tasks::new();
        assert_eq!(tasks.to_the_end(async { 1 }).await, 1);
        let (go, gone) = oneshot::channel::<()>();
        let (done, mut is_done) = oneshot::channel();
        let mut left = tasks.to_the_end(async move {
            gone.await.unwrap();
            done.send(2).unwrap();
        });
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(left);
        assert!(is_done.try_recv().is_err());
        go.send(()).unwrap();
        tasks.stop_and_wait().await;
        assert_eq!(is_done.await, Ok(2));
    }
}
