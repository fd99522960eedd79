//! The thread that lets each peer do what is due.

use std::time::Duration;

use super::{
    send::send_messages,
    shared::{Shared, count, lock},
};
use crate::peer::Outbox;

/// How often at most and at least the peers are looked at.
const TICK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Runs until the device ends.
pub fn run(shared: &Shared) {
    // The shortest constant is kept to within a twentieth; shortened ones, too.
    let shortest = shared.timers.rekey_timeout.min(shared.timers.keepalive);
    let tick = (shortest / 20).clamp(TICK.0, TICK.1);
    while shared.wait(None, Some(tick)) {
        let table = shared.table.load_full();
        for remote in table.by_slot.values() {
            let mut out = Outbox::new();
            let dropped = {
                let mut core = lock(&remote.core);
                shared.with_env(|env| core.tick(env, &mut out));
                core.take_dropped()
            };
            count(&shared.tally.queue_dropped, dropped);
            send_messages(shared, remote, &out);
        }
    }
}
