//! Constant load on a published port, and what became of every request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::eventually;

/// How long one request may take: longer than a lost packet needs to be sent again, far shorter than a hung connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// A request that takes this long waited for a packet to be sent again.
const SLOW: Duration = Duration::from_millis(500);

/// Clients that ask, each request on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    slow: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts `clients` clients, which ask the addresses in turn.
    pub fn start(addresses: &[String], clients: usize) -> Self {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        let stop = Arc::new(AtomicBool::default());
        let (answered, slow) = (Arc::new(AtomicU64::default()), Arc::new(AtomicU64::default()));
        let client = |number: usize| {
            let (stop, answered, slow, addresses) = (stop.clone(), answered.clone(), slow.clone(), addresses.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                for address in addresses.iter().cycle().skip(number) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    let mut own = None;
                    let asked = ask(address, &mut own);
                    let took = began.elapsed();
                    if took > SLOW {
                        slow.fetch_add(1, Ordering::Relaxed);
                    }
                    match asked {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            let at = time_of_day();
                            let from = own.map_or_else(|| "?".to_owned(), |own| own.to_string());
                            failures.push(format!("{from} to {address}, {took:.2?} until {at}: {error:#}"));
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
                failures
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, answered, slow, clients }
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests so far that waited for a packet to be sent again, answered or not.
    pub fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    /// Waits until so many requests were answered, however long that takes as long as it goes on.
    pub fn wait_for(&self, requests: u64) {
        while self.answered() < requests {
            let before = self.answered();
            eventually("another request is answered", || {
                ensure!(self.answered() > before, "{before} of {requests} were answered");
                Ok(())
            });
        }
    }

    /// Ends the load: how many requests were answered, and what became of the others.
    pub fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.clients.into_iter().flat_map(|c| c.join().expect("a client does not panic")).collect();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// The time of day in UTC to the millisecond, as the daemons' logs have it.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, now.subsec_millis())
}

fn ask(address: &SocketAddr, own: &mut Option<SocketAddr>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(address, PATIENCE).context("connecting")?;
    *own = stream.local_addr().ok();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("\nRemoteAddr: "), "an answer of {answer:?}");
    Ok(())
}
