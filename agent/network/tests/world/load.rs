//! Clients that ask without pause, and who answers them.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::within;

/// How long a connection lives.
pub const LIFE: Duration = Duration::from_millis(3);

/// What takes longer hangs: a connection that leads nowhere would for two minutes. Less may be a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers each client after [`LIFE`], then closes.
pub fn serve_slowly(netns: &Path) {
    let listener = within(netns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()).join().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 8]);
                thread::sleep(LIFE);
                let _ = stream.write_all(b"here");
            });
        }
    });
}

/// What clients in a namespace saw.
pub struct Clients {
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Clients {
    pub fn start(netns: &Path, to: &str, count: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::default()), Arc::new(AtomicU64::default()));
        let to: SocketAddr = to.parse().unwrap();
        let client = |_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            within(netns, move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match ask(&to) {
                        Ok(text) if text == "here" => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            })
        };
        let threads = (0..count).map(client).collect();
        Self { stop, answered, threads }
    }

    pub fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

fn ask(to: &SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
