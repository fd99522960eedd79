//! The window of message numbers that were seen, so that none is taken twice (paper, section 5.4.6; the algorithm is
//! that of RFC 6479). Wide, because runs of datagrams overtake each other whole.

/// Numbers behind the newest that may still come.
pub const WINDOW: u64 = 8192;
/// One word more than the window, so that the newest word may be partly empty (RFC 6479, section 2).
const WORDS: usize = WINDOW as usize / 64 + 1;

/// Which numbers were seen.
#[derive(Debug)]
pub struct Replay {
    /// The smallest number above all seen.
    next: u64,
    words: [u64; WORDS],
}

impl Default for Replay {
    fn default() -> Replay {
        Replay { next: 0, words: [0; WORDS] }
    }
}

impl Replay {
    /// Whether this number was not seen, and is not too old to know.
    pub fn is_new(&self, number: u64) -> bool {
        if number >= self.next {
            return true;
        }
        self.next - number <= WINDOW && self.words[word(number)] & bit(number) == 0
    }

    /// Notes a number whose message was authentic. False if [`Replay::is_new`] is.
    pub fn mark(&mut self, number: u64) -> bool {
        if !self.is_new(number) {
            return false;
        }
        if number >= self.next {
            // Words between the newest and this number's hold numbers of an earlier round.
            let (newest, target) = (self.next.saturating_sub(1) / 64, number / 64);
            for step in 1..=(target - newest).min(WORDS as u64) {
                self.words[((newest + step) % WORDS as u64) as usize] = 0;
            }
            self.next = number + 1;
        }
        self.words[word(number)] |= bit(number);
        true
    }
}

fn word(number: u64) -> usize {
    (number / 64 % WORDS as u64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_taken_once_and_old_ones_never() {
        let mut replay = Replay::default();
        assert!(replay.mark(0) && !replay.mark(0));
        assert!(replay.mark(WINDOW) && replay.mark(1) && !replay.mark(1));
        assert!(!replay.is_new(0));
        assert!(replay.mark(3 * WINDOW));
        assert!(!replay.is_new(2 * WINDOW) && replay.is_new(2 * WINDOW + 1));
    }

    proptest! {
        /// The same answers as a set that forgets nothing but what is too old.
        #[test]
        fn it_answers_as_a_set_does(steps in proptest::collection::vec((0u64..20_000, any::<bool>()), 1..400)) {
            let (mut replay, mut seen, mut base, mut next) = (Replay::default(), HashSet::new(), 0u64, 0u64);
            for (offset, jump) in steps {
                if jump {
                    base += offset / 4;
                }
                let number = (base + offset).saturating_sub(10_000);
                let fresh = !seen.contains(&number) && (number >= next || next - number <= WINDOW);
                prop_assert_eq!(replay.mark(number), fresh);
                if fresh {
                    seen.insert(number);
                    next = next.max(number + 1);
                }
            }
        }
    }
}
