use super::*;

fn at(start: u64, end: u64, step: Step) -> Operation {
    Operation { step, by: "c".into(), start, end: Some(end) }
}

fn lost(start: u64, step: Step) -> Operation {
    Operation { step, by: "c".into(), start, end: None }
}

fn create(value: u64) -> Step {
    Step::Create { value, id: Some("a".into()) }
}

fn seen(version: u64, value: u64) -> Step {
    Step::Seen { id: "a".into(), version, value }
}

fn update(version: u64, value: u64) -> Step {
    Step::Update { id: "a".into(), version, value }
}

fn stale(version: u64) -> Step {
    Step::UpdateStale { id: "a".into(), version }
}

fn delete() -> Step {
    Step::Delete { id: "a".into() }
}

fn holds(history: &[Operation]) -> bool {
    check(history, None, Versions::Exact) == Verdict::Linearizable
}

#[test]
fn one_client_after_another() {
    let history = [
        at(0, 1, create(1)),
        at(2, 3, seen(7, 1)),
        at(4, 5, update(7, 2)),
        at(6, 7, stale(7)),
        at(8, 9, seen(9, 2)),
        at(10, 11, delete()),
        at(12, 13, Step::SeenAbsent),
        at(14, 15, Step::NoSuchId { id: "a".into() }),
        at(16, 17, Step::Create { value: 3, id: Some("b".into()) }),
    ];
    assert!(holds(&history));
}

#[test]
fn a_read_that_misses_an_acknowledged_write_is_found() {
    assert!(!holds(&[at(0, 1, create(1)), at(2, 3, seen(7, 1)), at(4, 5, update(7, 2)), at(6, 7, seen(7, 1))]));
    assert!(!holds(&[at(0, 1, create(1)), at(2, 3, Step::SeenAbsent)]));
    // Beside it, either may be seen.
    let beside = [at(0, 1, create(1)), at(2, 3, seen(7, 1)), at(4, 9, update(7, 2)), at(5, 6, seen(7, 1))];
    assert!(holds(&beside));
}

#[test]
fn a_read_that_goes_back_is_found() {
    let history = [
        at(0, 1, create(1)),
        at(2, 3, seen(7, 1)),
        at(4, 20, update(7, 2)),
        at(5, 6, seen(9, 2)),
        at(7, 8, seen(7, 1)),
    ];
    assert!(!holds(&history));
}

#[test]
fn of_two_who_name_one_version_only_one_succeeds() {
    let begin = [at(0, 1, create(1)), at(2, 3, seen(7, 1))];
    let both = [begin.clone().to_vec(), vec![at(4, 8, update(7, 2)), at(5, 9, update(7, 3))]].concat();
    assert!(!holds(&both));
    assert_eq!(
        check(&both, None, Versions::MayGrow),
        Verdict::Broken(vec![at(5, 9, update(7, 3))]),
        "also where versions grow by themselves"
    );
    let one = [begin.to_vec(), vec![at(4, 8, update(7, 2)), at(5, 9, stale(7))]].concat();
    assert!(holds(&one));
}

#[test]
fn a_write_without_an_answer_may_be_seen_late_or_never_but_not_twice() {
    let begin = vec![at(0, 1, create(1)), at(2, 3, seen(7, 1)), lost(4, update(7, 2))];
    let with = |more: &[Operation]| holds(&[begin.clone(), more.to_vec()].concat());
    assert!(with(&[at(50, 51, seen(7, 1))]));
    assert!(with(&[at(50, 51, seen(7, 1)), at(60, 61, seen(9, 2))]));
    assert!(!with(&[at(50, 51, seen(9, 2)), at(60, 61, seen(7, 1))]));
    // Another has changed it: the version that the lost one named is gone for good.
    assert!(!with(&[at(50, 51, update(7, 3)), at(60, 61, seen(9, 3)), at(70, 71, seen(11, 2))]));
}

#[test]
fn an_acknowledged_create_is_not_made_twice() {
    assert!(!holds(&[at(0, 5, create(1)), at(1, 6, Step::Create { value: 1, id: Some("b".into()) })]));
    assert!(holds(&[at(0, 5, create(1)), at(1, 6, Step::CreateRefused)]));
    assert!(!holds(&[at(0, 1, Step::CreateRefused)]), "nobody had made it");
    assert!(holds(&[lost(0, Step::Create { value: 1, id: None }), at(1, 6, Step::CreateRefused)]));
}

#[test]
fn a_deleted_object_does_not_come_back() {
    let history = [at(0, 1, create(1)), at(2, 3, delete()), at(4, 5, seen(7, 1))];
    assert!(!holds(&history));
    let unknown = [at(0, 1, create(1)), lost(2, delete()), at(4, 5, Step::SeenAbsent), at(6, 7, seen(7, 1))];
    assert!(!holds(&unknown));
}

#[test]
fn versions_of_what_the_cluster_changes_may_grow_and_never_shrink() {
    let history = |last| [at(0, 1, create(1)), at(2, 3, seen(7, 1)), at(4, 5, seen(9, 1)), at(6, 7, seen(last, 1))];
    assert_eq!(check(&history(9), None, Versions::MayGrow), Verdict::Linearizable);
    assert!(matches!(check(&history(8), None, Versions::MayGrow), Verdict::Broken(_)));
    assert!(matches!(check(&history(9), None, Versions::Exact), Verdict::Broken(_)));
}

#[test]
fn an_object_that_was_there_before_is_known() {
    let before = Some(("a".to_owned(), 7, 1));
    assert_eq!(check(&[at(0, 1, update(7, 2))], before.clone(), Versions::Exact), Verdict::Linearizable);
    assert!(matches!(check(&[at(0, 1, Step::SeenAbsent)], before, Versions::Exact), Verdict::Broken(_)));
}

/// A register on one thread is asked by clients whose requests overlap, and some answers are lost: always linearizable.
/// One wrong answer among them is found, whenever it says what no order allows.
#[test]
fn long_histories_of_a_true_register_hold_and_a_forged_answer_is_found() {
    let mut random = crate::chaos::Random::new(5);
    for round in 0..20 {
        let mut history = Vec::new();
        let (mut object, mut version, mut made) = (None::<(String, u64, u64)>, 0, 0);
        for tick in 0..300_u64 {
            // It takes effect at 100 × tick; requests begin and end around that.
            let (start, end) = (100 * tick + 500 - random.below(400), 100 * tick + 501 + random.below(400));
            version += 1;
            let step = match (random.below(10), object.clone()) {
                (0..4, Some((id, version, value))) => Step::Seen { id, version, value },
                (0..4, None) => Step::SeenAbsent,
                (4..8, Some((id, old, _))) => {
                    object = Some((id.clone(), version, tick));
                    Step::Update { id, version: old, value: tick }
                }
                (8, Some((id, ..))) => {
                    object = None;
                    Step::Delete { id }
                }
                (_, Some(_)) => Step::CreateRefused,
                (_, None) => {
                    made += 1;
                    let id = format!("id{made}");
                    object = Some((id.clone(), version, tick));
                    Step::Create { value: tick, id: Some(id) }
                }
            };
            let is_lost = random.below(30) == 0 && !matches!(step, Step::Create { .. });
            history.push(Operation { step, by: "c".into(), start, end: (!is_lost).then_some(end) });
        }
        // A version is only known once it was read: here clients know them at once, which only MayGrow allows.
        assert_eq!(check(&history, None, Versions::MayGrow), Verdict::Linearizable, "round {round}");
        let Some(Operation { step: Step::Seen { value, .. }, .. }) =
            history.iter_mut().rev().find(|o| matches!(o.step, Step::Seen { .. }) && o.end.is_some())
        else {
            panic!("a history without reads");
        };
        *value = 1_000_000;
        assert!(matches!(check(&history, None, Versions::MayGrow), Verdict::Broken(_)), "round {round}");
    }
}
