//! Reads and writes are linearizable (Herlihy and Wing, 1990). The order of the log is the witness: an operation that
//! began after another had ended never comes before it, and a read returns what the log says at its place.

use std::collections::BTreeMap;

use crate::run::{self, Op, Report};

#[test]
fn reads_and_writes_take_effect_between_their_call_and_their_answer() {
    run::check_seeds("linearizable_reads", |report| {
        check_real_time(report);
        let reads = check_values(report);
        assert!(reads > 20, "only {reads} reads were answered");
    });
}

/// The place in the log of everything that was answered: when it began, when it ended, where it is.
fn places(report: &Report) -> Vec<(u64, u64, u64, bool)> {
    let answered = report.calls.iter().filter_map(|call| call.ended.map(|ended| (call, ended)));
    answered
        .filter_map(|(call, ended)| match &call.op {
            Op::Write { index, .. } => index.map(|index| (call.began, ended, index, true)),
            Op::Read { seen, .. } => seen.as_ref().map(|(_, index)| (call.began, ended, *index, false)),
        })
        .collect()
}

fn check_real_time(report: &Report) {
    let places = places(report);
    for (began, _, index, is_write) in &places {
        for (_, ended, earlier, earlier_is_write) in &places {
            if ended < began {
                assert!(earlier <= index, "an operation at {index} began after one at {earlier} had ended");
                // Several writes share an entry only if they were gathered, so none had ended when another began.
                assert!(
                    !(*is_write && *earlier_is_write && earlier == index),
                    "two writes in turn share entry {index}"
                );
            }
        }
    }
}

fn check_values(report: &Report) -> usize {
    // Where each value came into the log, by those that were acknowledged.
    let written: BTreeMap<&str, (&str, u64)> = report.acknowledged().map(|(_, k, v, i)| (v, (k, i))).collect();
    let mut reads = 0;
    for call in &report.calls {
        let Op::Read { key, seen: Some((value, at)) } = &call.op else { continue };
        reads += 1;
        let seen = value.as_deref().and_then(|value| written.get(value));
        if let Some((of, index)) = seen {
            assert_eq!(of, key, "a value of another key");
            assert!(index <= at, "read at {at} what entry {index} wrote");
        }
        // No acknowledged write of this key lies between what was seen and where it was read. Entries hold several
        // groups, so writes of the same entry cannot be told apart by index.
        let from = seen.map(|(_, index)| *index);
        let hidden = report.acknowledged().find(|(_, k, v, i)| {
            k == key && i <= at && Some(*v) != value.as_deref() && from.is_some_and(|from| *i > from)
        });
        assert!(hidden.is_none(), "a read of {key} at {at} missed {hidden:?}");
        if value.is_none() {
            let earlier = report.acknowledged().find(|(_, k, _, i)| k == key && i <= at);
            assert!(earlier.is_none(), "a read of {key} at {at} found nothing, not even {earlier:?}");
        }
    }
    reads
}
