//! Group commit: changes that threads ask for at the same time share a transaction, and so the
//! disk's time.
//!
//! There is no thread for it. The first to come leads: it makes the transaction for all who have
//! asked by then; those who come meanwhile are the next group. Threads that change one thing after
//! another would fall into two groups that take turns, so a leader waits a little for those
//! who were there the last time; where there was nobody else, it does not wait.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::locks::lock;

/// The result of a change: the number of a new row, or how many rows it concerned.
type ChangeResult = Result<i64, Arc<rusqlite::Error>>;

pub(super) struct Group {
    queue: Mutex<GroupQueue>,
    done: Condvar,
    joined: Condvar,
    writer: Mutex<Connection>,
}

#[derive(Default)]
struct GroupQueue {
    waiting: Vec<PendingChange>,
    /// Whether somebody makes a transaction now.
    led: bool,
    /// How many to expect: those of the last group, and those who came while it was written.
    expected: usize,
    /// How long the last transaction took.
    took: Duration,
}

struct PendingChange {
    work: Box<dyn FnMut(&Connection) -> rusqlite::Result<i64> + Send>,
    answer: Arc<Mutex<Option<ChangeResult>>>,
}

impl Group {
    pub(super) fn new(writer: Connection) -> Group {
        Group { queue: Mutex::default(), done: Condvar::new(), joined: Condvar::new(), writer: Mutex::new(writer) }
    }

    /// The connection that writes, if nobody uses it: what it has written, it need not read again.
    pub(super) fn idle_writer(&self) -> Option<MutexGuard<'_, Connection>> {
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Makes a change, together with those of other threads. When it returns without an error, the
    /// change is durable. The work may be done more than once, of which one counts.
    pub(super) fn change(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<i64> + Send + 'static,
    ) -> ChangeResult {
        let answer = Arc::new(Mutex::new(None));
        let mut queue = lock(&self.queue);
        queue.waiting.push(PendingChange { work: Box::new(work), answer: Arc::clone(&answer) });
        if queue.waiting.len() == queue.expected {
            self.joined.notify_one();
        }
        loop {
            if let Some(answer) = lock(&answer).take() {
                return answer;
            }
            if queue.led {
                queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.led = true;
            // Longer than half of what writing takes would cost more than it gains.
            let patience = queue.took / 2;
            let too_few = |queue: &mut GroupQueue| queue.waiting.len() < queue.expected;
            let waited = self.joined.wait_timeout_while(queue, patience, too_few);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            let group = std::mem::take(&mut queue.waiting);
            drop(queue);
            let (size, begun) = (group.len(), Instant::now());
            self.commit(group);
            queue = lock(&self.queue);
            queue.led = false;
            queue.took = begun.elapsed();
            queue.expected = size + queue.waiting.len();
            self.done.notify_all();
        }
    }

    fn commit(&self, mut group: Vec<PendingChange>) {
        let mut writer = lock(&self.writer);
        match transact(&mut writer, &mut group) {
            Ok(answers) => group.iter().zip(answers).for_each(|(change, answer)| change.answer(Ok(answer))),
            // Each change is made alone: where one message is too large for what is left of the disk, others may
            // fit.
            Err(error) if group.len() > 1 && error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
                for change in &mut group {
                    let alone = transact(&mut writer, std::slice::from_mut(change));
                    change.answer(alone.map(|answers| answers[0]).map_err(Arc::new));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                group.iter().for_each(|change| change.answer(Err(Arc::clone(&error))));
            }
        }
    }
}

impl PendingChange {
    fn answer(&self, answer: ChangeResult) {
        *lock(&self.answer) = Some(answer);
    }
}

fn transact(writer: &mut Connection, group: &mut [PendingChange]) -> rusqlite::Result<Vec<i64>> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let answers = group.iter_mut().map(|change| (change.work)(&transaction)).collect::<rusqlite::Result<Vec<i64>>>()?;
    transaction.commit()?;
    Ok(answers)
}
