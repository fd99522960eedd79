use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::*;

fn query() -> LogQuery {
    LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None }
}

fn entry(n: u32) -> String {
    let stream = if n.is_multiple_of(2) { "stdout" } else { "stderr" };
    format!("{{\"log\":\"{n}\\n\",\"stream\":\"{stream}\",\"time\":\"1970-01-01T00:00:{:02}.5Z\"}}\n", n % 60)
}

fn write(path: &Path, numbers: std::ops::Range<u32>) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    for n in numbers {
        file.write_all(entry(n).as_bytes()).unwrap();
    }
}

async fn numbers(path: &Path, query: LogQuery) -> Vec<u32> {
    let lines: Vec<_> = read(path.to_owned(), query, std::future::ready(())).collect().await;
    lines.into_iter().map(|l| number(&l.unwrap())).collect()
}

fn number(line: &LogLine) -> u32 {
    std::str::from_utf8(&line.bytes).unwrap().trim().parse().unwrap()
}

/// `log.2`: 0 to 9, `log.1`: 10 to 19, `log`: 20 to 29 and a torn line.
fn rotated() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write(&dir.path().join("log.2"), 0..10);
    write(&dir.path().join("log.1"), 10..20);
    write(&path, 20..30);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"log\":\"to").unwrap();
    (dir, path)
}

#[tokio::test]
async fn all_files_are_read_oldest_first_and_a_torn_line_is_left_out() {
    let (_dir, path) = rotated();
    assert_eq!(numbers(&path, query()).await, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_tail_counts_over_files() {
    let (_dir, path) = rotated();
    for tail in [0, 1, 10, 11, 25, 30, 99] {
        let want: Vec<u32> = (30u32.saturating_sub(tail)..30).collect();
        let query = LogQuery { tail: Some(tail as usize), ..query() };
        // The torn line counts for none... nor does it hide one.
        assert_eq!(numbers(&path, query).await, want, "tail {tail}");
    }
}

#[tokio::test]
async fn times_and_streams_select() {
    let (_dir, path) = rotated();
    let between = LogQuery { since_nanos: Some(5_500_000_000), until_nanos: Some(8_500_000_000), ..query() };
    assert_eq!(numbers(&path, between).await, [5, 6, 7, 8]);
    assert_eq!(numbers(&path, LogQuery { stdout: false, tail: Some(4), ..query() }).await, [27, 29]);
    assert_eq!(numbers(Path::new("/nonexistent/log"), query()).await, Vec::<u32>::new());
}

#[tokio::test]
async fn following_loses_nothing_over_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write(&path, 0..5);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let follow = LogQuery { follow: true, ..query() };
    let mut lines = read(path.clone(), follow, async { drop(ended.await) });
    for want in 0..5 {
        assert_eq!(number(&lines.next().await.unwrap().unwrap()), want);
    }
    for round in 1..20 {
        if round % 2 == 0 {
            write(&path, round * 5..round * 5 + 3);
            let _ = fs::rename(dir.path().join("log.1"), dir.path().join("log.2"));
            fs::rename(&path, dir.path().join("log.1")).unwrap();
            write(&path, round * 5 + 3..round * 5 + 5);
        } else {
            write(&path, round * 5..round * 5 + 5);
        }
        for want in round * 5..round * 5 + 5 {
            assert_eq!(number(&lines.next().await.unwrap().unwrap()), want);
        }
    }
    write(&path, 100..102);
    end.send(()).unwrap();
    let rest: Vec<u32> = lines.map(|l| number(&l.unwrap())).collect().await;
    assert_eq!(rest, [100, 101]);
}
