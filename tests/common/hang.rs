//! Every call of an outbox and of its forwarder, while the storage hangs or is gone: it ends within
//! its limit, and when the storage is back, all goes on and nothing is lost.

use std::time::{Duration, Instant};

use mllp_client::outbox::{Forwarder, Outbox, PushOptions};
use mllp_client::testing::Receiver;

use super::{LONG, client, eventually, message, waited_for_a_core};

/// The limit of each call.
pub const LIMIT: Duration = Duration::from_millis(300);

/// The limit of an exchange. Where claims are leases, theirs has to be longer.
pub const EXCHANGE: Duration = Duration::from_secs(1);

/// How much longer a call may take than its limit.
const GRACE: Duration = Duration::from_millis(250);

/// The storage is broken by `breaks` while messages wait and a forwarder runs, and comes back by
/// `mends`. The outboxes have `LIMIT` as the limit of their calls. Returns whether each call
/// succeeded meanwhile, by its name.
pub fn every_call_ends<O: Outbox + Clone + 'static>(
    name: &str,
    open: impl Fn() -> O,
    breaks: impl FnOnce(),
    mends: impl FnOnce(),
) -> Vec<(&'static str, bool)> {
    let receiver = Receiver::accepting().unwrap();
    let outbox = open();
    let forwarder = || {
        Forwarder::builder(open(), client(&receiver.endpoint(), EXCHANGE)).initial_delay(LIMIT / 10).start().unwrap()
    };
    let (first, second) = (forwarder(), forwarder());
    outbox.push(message("1").as_bytes()).unwrap();
    assert!(first.drain(LONG).unwrap());
    first.pause().unwrap();
    let ids = ["2", "3"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
    let other = outbox.push_with(message("4").as_bytes(), &PushOptions::new().key("four")).unwrap();
    assert_eq!(first.status().unwrap().waiting, 3);
    breaks();
    let succeeded = {
        let mut succeeded = Vec::new();
        let mut limited = |call: &'static str, make: &dyn Fn() -> bool| {
            let (begun, waited) = (Instant::now(), waited_for_a_core());
            let success = make();
            let (taken, waited) = (begun.elapsed(), waited_for_a_core() - waited);
            assert!(taken <= LIMIT + GRACE + waited, "{name}, {call}: {taken:?}, {waited:?} without a core");
            succeeded.push((call, success));
        };
        limited("push", &|| outbox.push(message("5").as_bytes()).is_ok());
        limited("push under a key", &|| {
            outbox.push_with(message("4").as_bytes(), &PushOptions::new().key("four")).is_ok_and(|id| id == other)
        });
        limited("claim", &|| outbox.claim().is_ok());
        limited("pending", &|| outbox.pending().is_ok());
        limited("list", &|| outbox.list(None, 0, 10).is_ok());
        limited("show", &|| outbox.show(ids[0]).is_ok());
        limited("stopped", &|| outbox.stopped(0, 10).is_ok());
        limited("hold", &|| outbox.hold(ids[1]).is_ok());
        limited("unhold", &|| outbox.unhold(ids[1]).is_ok());
        limited("requeue", &|| outbox.requeue(ids[1]).is_ok());
        limited("try_now", &|| outbox.try_now().is_ok());
        limited("wait", &|| {
            outbox.wait(LIMIT);
            true
        });
        limited("wake", &|| outbox.wake());
        limited("release", &|| {
            outbox.release();
            true
        });
        limited("status", &|| first.status().is_ok_and(|status| status.waiting == 3));
        limited("drain", &|| matches!(first.drain(LIMIT), Ok(false)));
        limited("resume", &|| first.resume().is_ok());
        limited("stop", &|| {
            // By then its thread may have ended or not.
            first.stop(LIMIT);
            true
        });
        limited("stop again", &|| {
            first.stop(Duration::ZERO);
            true
        });
        let (first, second) = (std::cell::Cell::new(Some(first)), std::cell::Cell::new(Some(second)));
        limited("drop", &|| {
            drop(second.take());
            true
        });
        limited("drop what was stopped", &|| {
            drop(first.take());
            true
        });
        succeeded
    };
    mends();
    let outbox = open();
    let mut pushed = false;
    eventually("it takes messages again", || {
        pushed = pushed || outbox.push(message("6").as_bytes()).is_ok();
        pushed && outbox.set_paused(false).is_ok()
    });
    let last = forwarder();
    eventually("it is drained", || last.drain(LIMIT).is_ok_and(|drained| drained));
    assert!(last.stop(LONG));
    let received = receiver.received();
    let place = |id: &str| received.iter().position(|received| *received == message(id).into_bytes());
    let places: Vec<_> = ["1", "2", "3", "4", "6"].map(|id| place(id).unwrap_or_else(|| panic!("{name}: {id}"))).into();
    assert!(places.is_sorted(), "{name}: {places:?}");
    succeeded
}
