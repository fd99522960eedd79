//! The device: interface, socket, table of peers, and the threads that carry packets between them.
//!
//! ```text
//! interface --read--> tx: cut |line: seal, in order --sendmmsg--> socket
//! interface <-writev-- in order, open, check, join :line| rx <--recvmmsg-- socket
//!                      doorman: answers handshakes <--bounded queue-- opened on the line
//!                      timers: what each peer has due --sendmmsg--> socket
//! ```

mod batch;
mod configure;
mod doorman;
mod handover;
mod line;
mod rx;
mod send;
mod shared;
mod timers;
mod tx;

use std::{
    fmt,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use rustix::event::{EventfdFlags, eventfd};
use zeroize::Zeroizing;

use self::{
    configure::{Kept, configure},
    doorman::Knock,
    handover::{restore, save},
    line::Line,
    send::send_messages,
    shared::{Shared, lock},
};
use crate::{
    Config, Error, Offloads, Options, PeerStatus, Status, TapOffload, Tuning,
    peer::Outbox,
    sys::{socket, tap},
};

/// After an error of interface or socket: it may have been taken away, or comes back.
const PAUSE: Duration = Duration::from_millis(50);

/// What another process needs to go on with a device: copies of its descriptors, and its state without session keys.
///
/// The state holds the private key: pass it only to a process that may have it, and never write it to a disk.
pub struct Handover {
    /// The interface and the socket, in this order.
    pub fds: Vec<OwnedFd>,
    /// Opaque and versioned.
    pub state: Vec<u8>,
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").field("fds", &self.fds).finish_non_exhaustive()
    }
}

/// A WireGuard device. Dropping it stops it; its interface is gone with the last copy of its descriptor.
pub struct Device {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a device is made of, new or taken over.
struct Parts {
    name: String,
    listen: SocketAddr,
    mtu: u32,
    tap: OwnedFd,
    udp: OwnedFd,
    offloads: Offloads,
    tuning: Tuning,
}

/// Runs a thread's loop again should it panic. Nothing is known to make it; but then one message must not end all
/// traffic of a node.
fn guard(name: &'static str, shared: &Shared, run: fn(&Shared)) {
    while catch_unwind(AssertUnwindSafe(|| run(shared))).is_err() {
        tracing::error!(interface = %shared.name, thread = name, "a thread of the device panicked and goes on");
        if !shared.wait(None, Some(PAUSE)) {
            return;
        }
    }
}

/// A thread's name and what it runs.
type Thread = (&'static str, fn(&Shared));

impl Device {
    /// Makes the interface in the calling thread's network namespace and the socket, and starts the threads. The
    /// interface is not up and has no address: that is the caller's. Without [`Device::configure`] it has no peers.
    ///
    /// # Errors
    /// Options out of range, or what the kernel refused.
    pub fn open(options: &Options) -> Result<Device, Error> {
        Device::open_with(options, Tuning::default())
    }

    /// [`Device::open`] with other constants, for tests and measurements.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_with(options: &Options, tuning: Tuning) -> Result<Device, Error> {
        check(options)?;
        let socket = socket::open(options.listen, tuning.offload.udp).map_err(|(step, source)| Error::Socket {
            listen: options.listen,
            step,
            source,
        })?;
        let (tap, offload) = tap::open(&options.name, options.mtu, tuning.offload.tap)
            .map_err(|(step, source)| Error::Interface { name: options.name.clone(), step, source })?;
        let offloads = Offloads { tap: offload, udp_segment: socket.udp_segment, udp_gro: socket.udp_gro };
        let (name, listen, mtu) = (options.name.clone(), socket.listen, options.mtu);
        let mut device = Device::new(Parts { name, listen, mtu, tap, udp: socket.fd, offloads, tuning })?;
        device.start()?;
        Ok(device)
    }

    /// Goes on with the device of an older process. Handshakes to all peers whose endpoint is known start at once,
    /// because sessions are not handed over: a number used twice with one key would give the key away.
    ///
    /// # Errors
    /// A state of another version, or descriptors that are not a TAP and a UDP socket.
    pub fn adopt(handover: Handover) -> Result<Device, Error> {
        Device::adopt_with(handover, Tuning::default())
    }

    /// [`Device::adopt`] with other constants, for tests and measurements.
    ///
    /// # Errors
    /// As [`Device::adopt`].
    pub fn adopt_with(handover: Handover, tuning: Tuning) -> Result<Device, Error> {
        let refused = |reason| Error::Handover { reason };
        let state = Zeroizing::new(handover.state);
        let restored = restore(&state)?;
        let [tap, udp]: [OwnedFd; 2] = handover.fds.try_into().map_err(|_| refused("it needs two descriptors"))?;
        let (name, _) = tap::identity(tap.as_fd()).map_err(|_| refused("the first descriptor is no TAP"))?;
        let listen = socket::address(udp.as_fd()).map_err(|_| refused("the second descriptor is no UDP socket"))?;
        let saved = &restored.saved;
        let steps = [TapOffload::None, TapOffload::Tso, TapOffload::Uso, TapOffload::Tunnel];
        let offloads = Offloads {
            tap: *steps.get(usize::from(saved.tap)).ok_or(refused("it names an offload that this version lacks"))?,
            udp_segment: saved.udp_segment,
            udp_gro: saved.udp_gro,
        };
        let mut device = Device::new(Parts { name, listen, mtu: saved.mtu, tap, udp, offloads, tuning })?;
        if let Some((config, endpoints)) = restored.config {
            let keys: Vec<_> = config.peers.iter().map(|peer| peer.public_key).collect();
            configure(&device.shared, config, &restored.kept)?;
            device.greet(&keys, &endpoints);
        }
        device.start()?;
        Ok(device)
    }

    fn new(parts: Parts) -> Result<Device, Error> {
        let (_, mac) = tap::identity(parts.tap.as_fd()).map_err(|source| Error::Interface {
            name: parts.name.clone(),
            step: "reading its Ethernet address",
            source,
        })?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::Thread { name: "wake-up", source: error.into() })?;
        let (door, knocks) = doorman::door();
        // One at the reader, one at each helper, and some that wait or are done, for a busy machine lets a thread pause in the
        // middle of the one that is to leave next.
        let under_way = 4 * parts.tuning.helpers() + 1;
        let shared = Shared {
            name: parts.name,
            mac,
            mtu: parts.mtu,
            listen: parts.listen,
            tap: parts.tap,
            udp: parts.udp,
            end,
            is_ending: AtomicBool::new(false),
            tap_offload: parts.offloads.tap,
            udp_segment: AtomicBool::new(parts.offloads.udp_segment),
            udp_gro: parts.offloads.udp_gro,
            timers: Arc::new(parts.tuning.timers.clone()),
            tuning: parts.tuning,
            table: Default::default(),
            config: Default::default(),
            tally: Default::default(),
            door,
            knocks: knocks.into(),
            outgoing: Line::new(under_way),
            incoming: Line::new(under_way),
            started: Instant::now(),
        };
        Ok(Device { shared: Arc::new(shared), threads: vec![] })
    }

    /// Starts the threads. They end when the device is dropped, also when not all of them could be started.
    fn start(&mut self) -> Result<(), Error> {
        let mut threads: Vec<Thread> =
            vec![("wg-tx", tx::run), ("wg-rx", rx::run), ("wg-door", doorman::run), ("wg-timers", timers::run)];
        for _ in 0..self.shared.tuning.helpers() {
            threads.extend::<[Thread; 2]>([("wg-tx-help", tx::help), ("wg-rx-help", rx::help)]);
        }
        for (name, run) in threads {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || guard(name, &shared, run));
            self.threads.push(thread.map_err(|source| Error::Thread { name, source })?);
        }
        Ok(())
    }

    /// Begins handshakes with all peers whose place is known.
    fn greet(&self, keys: &[crate::PublicKey], endpoints: &[Option<SocketAddr>]) {
        let table = self.shared.table.load();
        for (key, endpoint) in keys.iter().zip(endpoints) {
            let (Some(remote), Some(endpoint)) = (table.by_key.get(key), endpoint) else { continue };
            *lock(&remote.endpoint) = Some(*endpoint);
            let mut out = Outbox::new();
            self.shared.with_env(|env| lock(&remote.core).hurry(env, &mut out));
            send_messages(&self.shared, remote, &out);
        }
    }

    /// Copies of the descriptors and the state with which [`Device::adopt`] goes on. This device goes on too, until
    /// [`Device::stop`].
    ///
    /// # Errors
    /// When the process may have no more descriptors.
    pub fn handover(&self) -> Result<Handover, Error> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|source| Error::Duplicate { source });
        Ok(Handover { fds: vec![copy(&self.shared.tap)?, copy(&self.shared.udp)?], state: save(&self.shared) })
    }

    /// Brings the device to this configuration. Sessions of peers whose keys stay the same go on.
    ///
    /// # Errors
    /// A configuration that contradicts itself; then nothing is changed.
    pub fn configure(&self, config: Config) -> Result<(), Error> {
        configure(&self.shared, config, &Kept::new())
    }

    /// What the device sees now.
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let (now, wall) = (shared.now(), SystemTime::now());
        let peers = shared.table.load();
        let peers = peers.by_key.values().map(|remote| {
            let handshake_age = lock(&remote.core).latest_handshake().map(|at| now.saturating_sub(at));
            PeerStatus {
                public_key: remote.public_key,
                endpoint: *lock(&remote.endpoint),
                latest_handshake: handshake_age.and_then(|age| wall.checked_sub(age)),
                handshake_age,
                received_bytes: remote.received.load(Ordering::Relaxed),
                sent_bytes: remote.sent.load(Ordering::Relaxed),
            }
        });
        Status {
            name: shared.name.clone(),
            listen: shared.listen,
            offloads: Offloads {
                tap: shared.tap_offload,
                udp_segment: shared.udp_segment.load(Ordering::Relaxed),
                udp_gro: shared.udp_gro,
            },
            counters: shared.tally.read(),
            peers: peers.collect(),
        }
    }

    /// Stops reading and ends the threads. The interface stays if its descriptors were handed over.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        // The eventfd's counter cannot be full: nobody else adds to it.
        let _ = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes());
        self.shared.outgoing.close();
        self.shared.incoming.close();
        // A full queue keeps its thread awake by itself.
        if let Some(knock) = Knock::new(&[], self.shared.listen) {
            let _ = self.shared.door.try_send(knock);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(interface = %self.shared.name, "a thread of the device had ended by a panic");
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.shared.name)
            .field("listen", &self.shared.listen)
            .finish_non_exhaustive()
    }
}

fn check(options: &Options) -> Result<(), Error> {
    let name = &options.name;
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(Error::Name { name: name.clone() });
    }
    if !(1280..=65455).contains(&options.mtu) {
        return Err(Error::Mtu { mtu: options.mtu });
    }
    Ok(())
}
