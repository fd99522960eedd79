//! A container's questions and connections, made from its network namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::now;

/// How long an answer or a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two questions, and between two connections.
const PAUSE: Duration = Duration::from_millis(5);

/// What a client has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// When each address was named last, since 1970.
    pub named: BTreeMap<Ipv4Addr, Duration>,
    /// Answers to questions.
    pub answers: u64,
    /// Connections that were answered.
    pub connections: u64,
    /// What went wrong while nothing was killed.
    pub failures: Vec<String>,
    /// Connections that failed while tasks were killed.
    pub lost: u64,
}

impl Seen {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        for (address, at) in other.named {
            let last = self.named.entry(address).or_default();
            *last = at.max(*last);
        }
        self.answers += other.answers;
        self.connections += other.connections;
        self.failures.extend(other.failures);
        self.lost += other.lost;
    }
}

/// Clients in one namespace: one that asks for names, one that connects.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Clients {
    /// Starts them. Names are asked for in turn; `address` is connected to. `kills` counts up when somebody begins to kill tasks and
    /// when that is over: it is odd in between.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn start(namespace: &Path, names: &[String], address: SocketAddr, kills: &Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let inside = |work: Box<dyn FnOnce(&AtomicBool) -> Seen + Send>| {
            let (file, stop) = (File::open(namespace).expect("the namespace is there"), stop.clone());
            std::thread::spawn(move || {
                // This thread alone goes there, and it ends there.
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("the namespace is entered");
                work(&stop)
            })
        };
        let (names, kills) = (names.to_vec(), kills.clone());
        let threads = vec![
            inside(Box::new(move |stop| resolve(stop, &names))),
            inside(Box::new(move |stop| connect(stop, address, &kills))),
        ];
        Self { stop, threads }
    }

    /// Ends them.
    ///
    /// # Panics
    /// When one did.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        self.threads.into_iter().for_each(|thread| all.add(thread.join().expect("a client does not panic")));
        all
    }
}

fn resolve(stop: &AtomicBool, names: &[String]) -> Seen {
    let mut seen = Seen::default();
    for (id, name) in names.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match ask(name, u16::try_from(id % 65_536).unwrap_or_default()) {
            // When it was asked: the answer may have waited here.
            Ok((asked, addresses)) => {
                seen.answers += 1;
                for address in addresses {
                    seen.named.insert(address, asked);
                }
            }
            Err(error) => seen.failures.push(format!("{name} at {:?}: {error:#}", now())),
        }
        std::thread::sleep(PAUSE);
    }
    seen
}

/// Asks for the IPv4 addresses of a name (RFC 1035 section 4). One without any is an error.
fn ask(name: &str, id: u16) -> anyhow::Result<(Duration, Vec<Ipv4Addr>)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut question = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let asked = now();
    socket.send_to(&question, (Ipv4Addr::new(127, 0, 0, 11), 53))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).context("no answer")?;
    let answer = &buffer[..length];
    ensure!(length >= question.len() && answer[..2] == id.to_be_bytes(), "not the answer to the question");
    ensure!(answer[2] & 2 == 0, "the answer was cut");
    ensure!(answer[3] & 15 == 0, "response code {}", answer[3] & 15);
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    ensure!(count > 0, "no address");
    let mut rest = &answer[question.len()..];
    let mut addresses = Vec::new();
    for _ in 0..count {
        // A pointer to the name, type, class, time to live, length, address.
        let (record, more) = rest.split_at_checked(16).context("an answer that ends early")?;
        ensure!(record[0] & 0xc0 == 0xc0 && record[2..4] == [0, 1] && record[10..12] == [0, 4], "another record");
        addresses.push(Ipv4Addr::new(record[12], record[13], record[14], record[15]));
        rest = more;
    }
    Ok((asked, addresses))
}

fn connect(stop: &AtomicBool, address: SocketAddr, kills: &AtomicU64) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let (before, began) = (kills.load(Ordering::Relaxed), now());
        match fetch(address) {
            Ok(()) => seen.connections += 1,
            Err(_) if before % 2 == 1 || kills.load(Ordering::Relaxed) != before => seen.lost += 1,
            Err(error) => seen.failures.push(format!("{address} from {began:?} to {:?}: {error:#}", now())),
        }
        std::thread::sleep(PAUSE);
    }
    seen
}

fn fetch(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: mill\r\nConnection: close\r\n\r\n").context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "an answer of {answer:?}");
    Ok(())
}
