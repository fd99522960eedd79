//! What can be read on the wire between nodes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, socket, sockopt};

/// All frames that pass a namespace, since it was started.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reading: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Begins to listen on all links of the namespace (packet(7)).
    pub fn start(netns: &Path) -> Self {
        let every = u32::from(3u16.to_be()); // ETH_P_ALL
        let opened = super::within(netns, move || {
            let fd = socket(
                AddressFamily::PACKET,
                SocketType::RAW,
                Some(rustix::net::Protocol::from_raw(every.try_into().unwrap())),
            );
            let fd = fd.unwrap();
            sockopt::set_socket_recv_buffer_size_force(&fd, 64 << 20).unwrap();
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
            fd
        });
        let (fd, stop) = (opened.join().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let reading = thread::spawn(move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 128 << 10]);
            loop {
                match recv(&fd, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                    Err(rustix::io::Errno::AGAIN) if stopped.load(Ordering::Relaxed) => return frames,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Self { stop, reading }
    }

    /// Ends it, once nothing more comes.
    pub fn stop(self) -> Frames {
        self.stop.store(true, Ordering::Relaxed);
        Frames(self.reading.join().unwrap())
    }
}

/// What was captured.
pub struct Frames(pub Vec<Vec<u8>>);

impl Frames {
    /// Frames in which the text can be read.
    pub fn with(&self, text: &[u8]) -> usize {
        self.0.iter().filter(|frame| frame.windows(text.len()).any(|window| window == text)).count()
    }

    /// IPv4 headers with what follows.
    fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(|frame| frame.len() > 34 && frame[12..14] == [8, 0]).map(|frame| &frame[14..])
    }

    /// Payloads of UDP datagrams to the port, from the address.
    pub fn udp(&self, port: u16) -> Vec<([u8; 4], Vec<u8>)> {
        let is_udp = |p: &&[u8]| p[9] == 17 && p[0] == 0x45 && p.len() > 28 && p[22..24] == port.to_be_bytes();
        self.packets().filter(is_udp).map(|p| ([p[12], p[13], p[14], p[15]], p[28..].to_vec())).collect()
    }

    /// Fragments of IPv6 packets (next header 44).
    pub fn fragments6(&self) -> usize {
        self.0.iter().filter(|frame| frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[20] == 44).count()
    }

    /// Fragments of packets.
    pub fn fragments(&self) -> usize {
        self.packets().filter(|p| u16::from_be_bytes([p[6], p[7]]) & 0x3fff != 0).count()
    }
}
