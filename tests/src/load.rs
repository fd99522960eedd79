//! Constant load on a published port, and what became of every request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// How long one request may take: longer than a lost packet needs to be sent again, far shorter than a hung connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(2);

/// Clients that ask, each request on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts `clients` clients, which ask the addresses in turn.
    pub fn start(addresses: &[String], clients: usize) -> Self {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        let (stop, answered) = (Arc::new(AtomicBool::default()), Arc::new(AtomicU64::default()));
        let client = |number: usize| {
            let (stop, answered, addresses) = (stop.clone(), answered.clone(), addresses.clone());
            std::thread::spawn(move || {
                let began = Instant::now();
                let mut failures = Vec::new();
                for address in addresses.iter().cycle().skip(number) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match ask(address) {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(format!("{:?} {address}: {error:#}", began.elapsed())),
                    }
                    std::thread::sleep(PAUSE);
                }
                failures
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, answered, clients }
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the load: how many requests were answered, and what became of the others.
    pub fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.clients.into_iter().flat_map(|c| c.join().expect("a client does not panic")).collect();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

fn ask(address: &SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("\nRemoteAddr: "), "an answer of {answer:?}");
    Ok(())
}
