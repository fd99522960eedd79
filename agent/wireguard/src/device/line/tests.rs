//! Threads at a line: order, bounds, panics and the end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::*;

/// What the job's number says is done with it.
struct Record<'a> {
    left: Mutex<Vec<usize>>,
    under_way: AtomicUsize,
    most: AtomicUsize,
    work: &'a (dyn Fn(usize) + Sync),
}

fn record(work: &(dyn Fn(usize) + Sync)) -> Record<'_> {
    Record { left: Mutex::default(), under_way: 0.into(), most: 0.into(), work }
}

impl Stages<usize> for Record<'_> {
    fn work(&self, job: &mut usize) {
        (self.work)(*job);
    }

    fn leave(&self, job: &mut usize) {
        lock(&self.left).push(*job);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The leader: puts jobs with these numbers.
fn fill(line: &Line<usize>, record: &Record<'_>, mut numbers: impl Iterator<Item = usize>) {
    loop {
        let mut job = line.job(record, || 0);
        let Some(number) = numbers.next() else { return };
        job.clone_from(&number);
        let now = record.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        record.most.fetch_max(now, Ordering::Relaxed);
        line.call();
        line.put(job);
    }
}

/// Work that takes another time for each number.
fn uneven(number: usize) {
    for i in 0..number.wrapping_mul(7919) % 5000 {
        std::hint::black_box(i);
    }
}

#[test]
fn jobs_leave_in_the_order_in_which_they_came_however_many_work() {
    for helpers in 0..4 {
        let (line, record) = (Line::new(2 * helpers + 1), record(&uneven));
        thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| line.help(&record));
            }
            for burst in 0..100 {
                fill(&line, &record, burst * 50..(burst + 1) * 50);
                // As between bursts of packets: helpers fall asleep, and are called again.
                line.finish(&record);
            }
            line.close();
        });
        line.finish(&record);
        assert_eq!(*lock(&record.left), (0..5000).collect::<Vec<_>>());
        // One more while it goes from the line to where it leaves.
        assert!(record.most.load(Ordering::Relaxed) <= 2 * helpers + 2, "{helpers}: {:?}", record.most);
    }
}

#[test]
fn a_job_waits_for_those_before_it_and_the_line_is_full_meanwhile() {
    let (started, may_end) = (Barrier::new(2), Barrier::new(2));
    let slow = |number| {
        if number == 0 {
            started.wait();
            may_end.wait();
        }
    };
    let (line, record) = (Line::new(3), record(&slow));
    record.under_way.store(3, Ordering::Relaxed);
    line.put(0);
    thread::scope(|scope| {
        let slow = scope.spawn(|| line.step(&record));
        started.wait();
        for number in 1..3 {
            line.put(number);
        }
        assert!(line.finish(&record));
        assert_eq!(*lock(&record.left), [], "the first is still worked on");
        assert!(!line.step(&record), "nothing can be done, and nobody has to wait for it");
        let leader = scope.spawn(|| line.job(&record, || 7));
        may_end.wait();
        assert!(slow.join().unwrap());
        leader.join().unwrap();
    });
    line.finish(&record);
    assert_eq!(*lock(&record.left), [0, 1, 2]);
}

#[test]
fn a_panic_loses_one_job_and_no_other() {
    let bad = |number| assert!(number % 10 != 3, "a test's panic");
    for helpers in [0, 2] {
        let (line, record) = (Line::new(2 * helpers + 1), record(&bad));
        // As the guard of each thread does.
        let again = |mut run: Box<dyn FnMut() + '_>| while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {};
        thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| again(Box::new(|| line.help(&record))));
            }
            let mut numbers = 0..100;
            again(Box::new(|| {
                line.finish(&record);
                fill(&line, &record, &mut numbers);
                line.finish(&record);
            }));
            line.close();
        });
        line.finish(&record);
        let left = lock(&record.left).clone();
        let rest: Vec<usize> = (0..100).filter(|number| number % 10 != 3).collect();
        assert_eq!(left, rest);
    }
}

#[test]
fn helpers_end_when_the_line_is_closed_and_leave_nothing_behind() {
    let (line, record) = (Line::new(8), record(&uneven));
    thread::scope(|scope| {
        let helpers: Vec<_> = (0..3).map(|_| scope.spawn(|| line.help(&record))).collect();
        fill(&line, &record, 0..1000);
        line.close();
        line.finish(&record);
        helpers.into_iter().for_each(|helper| helper.join().unwrap());
    });
    assert_eq!(*lock(&record.left), (0..1000).collect::<Vec<_>>());
    assert!(!line.step(&record));
}
