//! The device: interface, socket, table of peers, and the threads that carry packets between them.

use std::{
    fmt,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use crate::{
    Config, Counters, Error, Offloads, Options, Status, TapOffload, Tuning,
    sys::{socket, tap},
};

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

/// A WireGuard device. Dropping it stops it, and its interface is gone.
pub struct Device {
    name: String,
    listen: SocketAddr,
    offloads: Offloads,
    tap: OwnedFd,
    udp: OwnedFd,
    config: Mutex<Option<Config>>,
}

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
        Ok(Device {
            name: options.name.clone(),
            listen: socket.listen,
            offloads: Offloads { tap: offload, udp_segment: socket.udp_segment, udp_gro: socket.udp_gro },
            tap,
            udp: socket.fd,
            config: Mutex::new(None),
        })
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
    pub fn adopt_with(handover: Handover, _tuning: Tuning) -> Result<Device, Error> {
        let refused = |reason| Error::Handover { reason };
        let [tap, udp]: [OwnedFd; 2] = handover.fds.try_into().map_err(|_| refused("it needs two descriptors"))?;
        let (name, _) = tap::identity(tap.as_fd()).map_err(|_| refused("the first descriptor is no TAP"))?;
        let listen = socket::address(udp.as_fd()).map_err(|_| refused("the second descriptor is no UDP socket"))?;
        Ok(Device {
            name,
            listen,
            offloads: Offloads { tap: TapOffload::None, udp_segment: false, udp_gro: false },
            tap,
            udp,
            config: Mutex::new(None),
        })
    }

    /// Copies of the descriptors and the state with which [`Device::adopt`] goes on. This device goes on too, until
    /// [`Device::stop`].
    ///
    /// # Errors
    /// When the process may have no more descriptors.
    pub fn handover(&self) -> Result<Handover, Error> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|source| Error::Duplicate { source });
        Ok(Handover { fds: vec![copy(&self.tap)?, copy(&self.udp)?], state: vec![] })
    }

    /// Brings the device to this configuration.
    ///
    /// # Errors
    /// A configuration that contradicts itself; then nothing is changed.
    pub fn configure(&self, config: Config) -> Result<(), Error> {
        *self.config.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(config);
        Ok(())
    }

    /// What the device sees now.
    pub fn status(&self) -> Status {
        Status {
            name: self.name.clone(),
            listen: self.listen,
            offloads: self.offloads,
            counters: Counters::default(),
            peers: vec![],
        }
    }

    /// Stops reading and ends the threads. The interface stays if its descriptors were handed over.
    pub fn stop(self) {}
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
