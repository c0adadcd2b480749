//! Locks and waits for which a model checker or a simulation can stand in.

use std::sync::PoisonError;
use std::time::Duration;

#[cfg(all(test, loom))]
pub(super) use loom::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicU64};
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicU64};

/// Locks. Every change of what is locked in this folder is a few assignments, so that a panic
/// cannot leave it half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until somebody notifies, or until the limit.
pub(super) fn wait<'m, T>(condvar: &Condvar, guard: MutexGuard<'m, T>, limit: Duration) -> MutexGuard<'m, T> {
    #[cfg(any(test, fuzzing))]
    if crate::simulation::wait(limit) {
        return guard;
    }
    condvar.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
}

/// Runs these on threads of their own, the first on this one, and waits for all.
#[cfg(all(test, loom))]
pub(super) fn run_together<M: Send + Sync + 'static>(model: &std::sync::Arc<M>, threads: &'static [fn(&M)]) {
    let spawn = |&run: &fn(&M)| {
        let model = std::sync::Arc::clone(model);
        loom::thread::spawn(move || run(&model))
    };
    let others: Vec<_> = threads[1..].iter().map(spawn).collect();
    threads[0](model);
    others.into_iter().for_each(|thread| thread.join().unwrap());
}
