use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;

use super::*;
use crate::dns::patch::{NamePatch, ZonePatch, ZonesPatch};
use crate::dns::zone::ZoneKey;
use crate::netd::told::Edition;

fn edition(number: u64) -> Edition {
    Edition { by: 1, number }
}

/// The update that leads to an edition: a name gets an address that tells it.
fn update(number: u64) -> Update {
    let address = std::net::Ipv4Addr::from(u32::try_from(number).unwrap()).into();
    let patch = NamePatch { known: true, gone: Vec::new(), new: vec![address] };
    let names = BTreeMap::from([(format!("name{}", number % 3), patch)]);
    let zone = ZonePatch::There { network: "back".into(), names, pointers: BTreeMap::new() };
    let patch = ZonesPatch(BTreeMap::from([(ZoneKey::Bridge("back".into()), zone)]));
    Update { base: edition(number - 1), next: edition(number), patch }
}

fn begun() -> Told {
    Told { edition: Some(edition(0)), ..Told::default() }
}

/// The zones after that many updates.
fn after(count: u64) -> Told {
    let mut told = begun();
    for number in 1..=count {
        assert!(told.follow(&update(number)));
    }
    told
}

/// A journal of that many updates, and its length after each.
fn written(path: &Path, count: u64) -> Vec<u64> {
    let mut journal = Journal::begin(path, 0).unwrap();
    let mut lengths = vec![fs::metadata(path).unwrap().len()];
    for number in 1..=count {
        assert!(journal.append(&update(number)).unwrap());
        lengths.push(fs::metadata(path).unwrap().len());
    }
    lengths
}

#[test]
fn updates_are_read_back_and_those_that_the_record_has_already_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut told = begun();
    assert_eq!(replay(&path, &mut told).unwrap(), (0, false));
    written(&path, 5);
    assert_eq!(replay(&path, &mut told).unwrap(), (5, false));
    assert_eq!(told, after(5));
    // A crash between writing the record and beginning the journal.
    let mut later = after(3);
    assert_eq!(replay(&path, &mut later).unwrap(), (2, false));
    assert_eq!(later, after(5));
    let mut all = after(5);
    assert_eq!((replay(&path, &mut all).unwrap(), all), ((0, false), after(5)));
    // A record that an older process wrote has no edition.
    let mut older = Told { edition: None, ..after(2) };
    assert_eq!((replay(&path, &mut older).unwrap().0, older.zones), (0, after(2).zones));
}

#[test]
fn a_journal_that_is_full_or_would_hold_a_long_update_takes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::begin(&path, 0).unwrap();
    let mut count = 0;
    while journal.append(&update(count + 1)).unwrap() {
        count += 1;
    }
    let length = fs::metadata(&path).unwrap().len();
    assert!(length <= LEAST && length > LEAST - 100, "{length}");
    let mut told = begun();
    assert_eq!(replay(&path, &mut told).unwrap(), (usize::try_from(count).unwrap(), false));

    let mut journal = Journal::begin(&path, 100 << 20).unwrap();
    let mut long = update(1);
    let names = (0..100_000).map(|number| (format!("name{number}"), NamePatch::default()));
    let zone = ZonePatch::There { network: "back".into(), names: names.collect(), pointers: BTreeMap::new() };
    long.patch.0.insert(ZoneKey::Bridge("back".into()), zone);
    assert!(!journal.append(&long).unwrap());
    assert!(journal.append(&update(1)).unwrap());
    let mut told = begun();
    assert_eq!(replay(&path, &mut told).unwrap(), (1, false));
}

proptest! {
    #[test]
    fn what_is_cut_off_or_damaged_costs_what_is_behind_it_and_no_more(
        count in 0u64..12, at in any::<prop::sample::Index>(), flip in prop::option::of(1u8..), tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let lengths = written(&path, count);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let cut = bytes[at];
        match flip {
            Some(bits) => bytes[at] ^= bits,
            None => bytes.truncate(at),
        }
        // Or it would be whole again.
        let tail = tail.iter().enumerate().map(|(place, byte)| if place == 0 { !cut } else { *byte });
        bytes.extend(tail);
        fs::write(&path, &bytes).unwrap();
        let whole = lengths.iter().filter(|length| **length <= u64::try_from(at).unwrap()).count().saturating_sub(1);
        let mut told = begun();
        let (taken, _) = replay(&path, &mut told).unwrap();
        prop_assert_eq!(taken, whole);
        prop_assert_eq!(told, after(u64::try_from(whole).unwrap()));
    }

    #[test]
    fn no_bytes_make_it_panic_or_change_anything(mut bytes in prop::collection::vec(any::<u8>(), 0..200), formatted in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        if formatted {
            bytes.splice(0..0, FORMAT.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
        let mut told = after(2);
        prop_assert_eq!(replay(&path, &mut told).unwrap().0, 0);
        prop_assert_eq!(told, after(2));
    }
}
