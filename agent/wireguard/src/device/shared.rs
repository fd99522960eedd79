//! What the threads of a device share.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use rand::TryRngCore as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{doorman::Knock, line::Line, rx::Haul, tx::Parcel};
use crate::{
    Config, Counters, PublicKey, TapOffload, Timers, Tuning,
    allowed::Allowed,
    noise::handshake::Identity,
    peer::{Core, Entropy, Env},
};

/// The device's facts, descriptors and tables.
pub struct Shared {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub listen: SocketAddr,
    pub tap: OwnedFd,
    pub udp: OwnedFd,
    /// An eventfd: readable once the threads are to end, for those that wait …
    pub end: OwnedFd,
    /// … and true, for those that always have something to do.
    pub is_ending: AtomicBool,
    pub tap_offload: TapOffload,
    /// Turned off when the kernel turns out to refuse it on the way that packets take.
    pub udp_segment: AtomicBool,
    pub udp_gro: bool,
    pub tuning: Tuning,
    pub timers: Arc<Timers>,
    pub table: ArcSwap<Table>,
    /// As last configured; held while a new configuration is brought about.
    pub config: Mutex<Option<Config>>,
    pub tally: Tally,
    /// Handshake messages on their way to their thread.
    pub door: SyncSender<Knock>,
    pub knocks: Mutex<Receiver<Knock>>,
    /// Between interface and socket.
    pub outgoing: Line<Parcel>,
    pub incoming: Line<Haul>,
    pub started: Instant,
}

/// The device's key and its peers, replaced as a whole.
#[derive(Default)]
pub struct Table {
    pub identity: Option<Arc<Identity>>,
    pub by_slot: HashMap<u32, Arc<Remote>>,
    pub by_key: BTreeMap<PublicKey, Arc<Remote>>,
    pub routes: Allowed<Arc<Remote>>,
}

/// A peer and where it is.
pub struct Remote {
    pub public_key: PublicKey,
    pub endpoint: Mutex<Option<SocketAddr>>,
    pub core: Mutex<Core>,
    /// Bytes of authentic messages.
    pub received: AtomicU64,
    pub sent: AtomicU64,
}

/// [`Counters`] that threads add to.
#[derive(Default)]
pub struct Tally {
    pub packets_sent: AtomicU64,
    pub packets_received: AtomicU64,
    pub no_route: AtomicU64,
    pub malformed_inside: AtomicU64,
    pub queue_dropped: AtomicU64,
    pub send_failed: AtomicU64,
    pub unknown: AtomicU64,
    pub forged: AtomicU64,
    pub replayed: AtomicU64,
    pub wrong_source: AtomicU64,
    pub malformed_peer: AtomicU64,
    pub write_failed: AtomicU64,
    pub handshakes_alien: AtomicU64,
    pub handshakes_tried: AtomicU64,
    pub handshakes_refused: AtomicU64,
    pub handshakes_limited: AtomicU64,
    pub cookies_sent: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A lock whose holder has panicked is taken all the same: the threads leave whole values behind.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    pub fn read(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            packets_sent: get(&self.packets_sent),
            packets_received: get(&self.packets_received),
            no_route: get(&self.no_route),
            malformed_inside: get(&self.malformed_inside),
            queue_dropped: get(&self.queue_dropped),
            send_failed: get(&self.send_failed),
            unknown: get(&self.unknown),
            forged: get(&self.forged),
            replayed: get(&self.replayed),
            wrong_source: get(&self.wrong_source),
            malformed_peer: get(&self.malformed_peer),
            write_failed: get(&self.write_failed),
            handshakes_alien: get(&self.handshakes_alien),
            handshakes_tried: get(&self.handshakes_tried),
            handshakes_refused: get(&self.handshakes_refused),
            handshakes_limited: get(&self.handshakes_limited),
            cookies_sent: get(&self.cookies_sent),
        }
    }
}

/// Random numbers of the operating system.
pub struct Os;

impl Entropy for Os {
    fn fill(&mut self, bytes: &mut [u8]) {
        // A system call for each handshake: nothing is kept that would have to be wiped.
        rand::rngs::OsRng.try_fill_bytes(bytes).expect("the operating system gives random numbers");
    }
}

impl Shared {
    /// The clock of the protocol.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs a step of the protocol with the present time.
    pub fn with_env<T>(&self, step: impl FnOnce(&mut Env<'_>) -> T) -> T {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        step(&mut Env { now: self.now(), wall, entropy: &mut Os })
    }

    /// Waits until `fd` can be read; false once the threads are to end. `limit`: no longer than this.
    pub fn wait(&self, fd: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> bool {
        let limit =
            limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
        let mut fds = vec![PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)];
        fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, limit.as_ref());
        fds[0].revents().is_empty()
    }
}
