//! How new connections spread over tasks, so that a task that comes or goes changes elements of maps and no rule.
//!
//! The tasks behind an address or port are numbered from 0 without gaps, and a map has each under its number. A rule draws a
//! number and looks it up. The kernel draws below a constant, so rules are made for sizes, and the address leads to those of
//! its size:
//!
//! ```text
//! vips:        10.0.1.200 -> goto balance-10          changes when the size does
//! backends:    10.0.1.200 . 0 -> 10.0.1.10            changes with each task
//!              ...
//!              10.0.1.200 . 8 -> 10.0.1.18
//! balance-10:  five times: dnat to backends[destination . random below 10]
//!              then below 8, then 0
//! ```
//!
//! Sizes are 1 to 8, then four in each power of two. A draw that finds nobody goes on to the next rule; the one before the
//! last draws among as many as there are in any case. So nobody gets a share that is off by more than a thousandth of itself.
//!
//! Elements that hold no verdict are all that the kernel changes without looking through all rules of the table. And a
//! packet that is between rule and map when it changes over finds either the task of before or that of after, or nobody and
//! draws again; the last rule is for those that were overtaken by several changes.
//!
//! Where the size changes, so does the chain. A packet that came into a base chain before the kernel changed over sees rules of
//! before, also in a chain that was none then or is none any more: it is led nowhere. So there is a second base chain behind
//! each, by which the kernel (`nf_nat_inet_fn`) leads whom the first one did not lead, and which finds the rules of after.
//! Without it 22 of 7.8 million packets were refused while a size changed 2,000 times (kernel_balance).

use std::collections::BTreeSet;

/// Sizes up to this one are made as they are.
const EXACT: u32 = 8;
/// How often it is drawn below a size that may be larger than what is there. Of the draws, a fifth finds nobody at most.
const TRIES: usize = 5;

/// The smallest of the sizes that rules are made for and that `count` tasks fit in.
pub fn size(count: usize) -> u32 {
    let count = u32::try_from(count).expect("tasks are counted in 32 bits");
    if count <= EXACT {
        return count.max(1);
    }
    let power = count.next_power_of_two();
    let quarter = power / 8;
    (5..=8).map(|quarters| quarters * quarter).find(|size| *size >= count).unwrap_or(power)
}

/// The size before it: one that has it as its size has more tasks than that.
fn smaller(size: u32) -> u32 {
    match size {
        0..=1 => 1,
        2..=EXACT => size - 1,
        _ => {
            let quarter = size.next_power_of_two() / 8;
            size - quarter
        }
    }
}

/// Below what the rules of a size draw, one after the other.
pub fn draws(size: u32) -> Vec<u32> {
    let tries = if size <= EXACT { 1 } else { TRIES };
    let mut draws = vec![size; tries];
    draws.extend([smaller(size), 1]);
    draws
}

/// The wanted ones in an order that is as near to `before` as it can be: those that stay keep their numbers, those that are
/// new take the gaps, and what gaps are left then are filled from the end.
pub fn arrange<T: Ord + Copy>(before: &[T], wanted: &BTreeSet<T>) -> Vec<T> {
    let mut new = {
        let stay: BTreeSet<&T> = before.iter().filter(|one| wanted.contains(*one)).collect();
        wanted.iter().filter(|one| !stay.contains(one)).copied().collect::<Vec<_>>().into_iter()
    };
    let mut seen = BTreeSet::new();
    // What a damaged record may have twice counts once.
    let stays = |one: &T, seen: &mut BTreeSet<T>| wanted.contains(one) && seen.insert(*one);
    let mut slots: Vec<Option<T>> =
        before.iter().map(|one| if stays(one, &mut seen) { Some(*one) } else { new.next() }).collect();
    slots.extend(new.map(Some));
    let mut order = Vec::with_capacity(wanted.len());
    let mut from = 0;
    while from < slots.len() {
        match slots[from] {
            Some(one) => {
                order.push(one);
                from += 1;
            }
            None => drop(slots.swap_remove(from)),
        }
    }
    order
}

/// Numbers at which `after` differs from `before`, with who is there now.
pub fn moved<'a, T: PartialEq>(before: &'a [T], after: &'a [T]) -> impl Iterator<Item = (u32, Option<&'a T>)> {
    let numbers = 0..before.len().max(after.len());
    let differs = numbers.filter(move |number| before.get(*number) != after.get(*number));
    differs.map(move |number| (index(number), after.get(number)))
}

/// A place in an order, as maps have it.
pub fn index(place: usize) -> u32 {
    u32::try_from(place).expect("tasks are counted in 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The share of each of `count` tasks in new connections.
    fn shares(count: usize) -> Vec<f64> {
        let (mut shares, mut left) = (vec![0.0; count], 1.0);
        for below in draws(size(count)) {
            let there = count.min(below as usize);
            let each = left / f64::from(below);
            shares[..there].iter_mut().for_each(|share| *share += each);
            left -= each * there as f64;
        }
        assert!(left < 1e-9, "{left} of {count} tasks' connections are led nowhere");
        shares
    }

    #[test]
    fn nobodys_share_is_off_by_more_than_a_thousandth_and_small_numbers_are_exact() {
        for count in (1..=2100).chain([4097, 12_289, 16_384, 49_153, 65_536]) {
            let bound = if count <= 8 { 1e-9 } else { 0.001 };
            for share in shares(count) {
                let off = share * count as f64 - 1.0;
                assert!(off.abs() < bound, "one of {count} is off by {off}");
            }
        }
    }

    #[test]
    fn sizes_are_few_and_each_is_its_own() {
        assert_eq!(
            [0, 1, 2, 7, 8, 9, 10, 11, 13, 17, 21, 25, 33].map(size),
            [1, 1, 2, 7, 8, 10, 10, 12, 14, 20, 24, 28, 40]
        );
        let all: BTreeSet<u32> = (1..=10_000).map(size).collect();
        assert_eq!(all.len(), 8 + 4 * 10 + 1);
        for (before, next) in all.iter().zip(all.iter().skip(1)) {
            assert_eq!(smaller(*next), *before);
        }
        assert!(all.iter().all(|one| size(*one as usize) == *one));
    }

    #[test]
    fn who_goes_is_followed_by_the_last_one_and_who_comes_instead_takes_the_place() {
        assert_eq!(arrange(&[1, 2, 3, 4], &[1, 3, 4].into()), [1, 4, 3]);
        assert_eq!(arrange(&[1, 2, 3, 4], &[1, 3, 4, 9].into()), [1, 9, 3, 4]);
        assert_eq!(arrange(&[1, 2, 3, 4], &[3, 9].into()), [9, 3]);
        assert_eq!(arrange(&[2, 1], &[1, 2, 3].into()), [2, 1, 3]);
        assert_eq!(arrange(&[5, 5, 1, 5], &[1, 5].into()), [5, 1]);
        let moved: Vec<_> = moved(&[1, 2, 3, 4], &[1, 4, 3]).collect();
        assert_eq!(moved, [(1, Some(&4)), (3, None)]);
    }

    proptest! {
        #[test]
        fn an_order_has_all_and_moves_as_few_as_it_can(
            before in proptest::collection::btree_set(0u8..40, 0..40), wanted in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let first: Vec<u8> = before.iter().rev().copied().collect();
            let order = arrange(&first, &wanted);
            prop_assert_eq!(order.len(), wanted.len());
            prop_assert_eq!(&order.iter().copied().collect::<BTreeSet<_>>(), &wanted);
            // Whoever came changes an element, and so does the end that went; each gap before it takes one from there.
            let come = wanted.difference(&before).count();
            let gone = before.difference(&wanted).count();
            prop_assert!(moved(&first, &order).count() <= come.max(gone) + gone.saturating_sub(come));
        }
    }
}
