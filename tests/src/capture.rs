//! What can be read on the wire between the nodes of a lab.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Every protocol (`ETH_P_ALL`, packet(7)).
const ALL: u16 = 3;

/// All frames that pass a network namespace.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reading: JoinHandle<Vec<Vec<u8>>>,
}

/// What was captured.
pub struct Frames(Vec<Vec<u8>>);

impl Capture {
    /// Begins to listen on all links of the namespace.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn start(namespace: &Path) -> Self {
        let file = File::open(namespace).expect("the namespace is there");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (ready, is_ready)) = (stop.clone(), std::sync::mpsc::channel());
        let reading = std::thread::spawn(move || {
            // This thread alone goes there, and it ends there.
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace is entered");
            let protocol = Protocol::from_raw(u32::from(ALL.to_be()).try_into().expect("it is not zero"));
            let fd = socket(AddressFamily::PACKET, SocketType::RAW, Some(protocol)).expect("root may capture");
            sockopt::set_socket_recv_buffer_size_force(&fd, 64 << 20).expect("root may have a large buffer");
            let pause = Some(Duration::from_millis(100));
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, pause).expect("a socket has a time-out");
            ready.send(()).expect("the test waits");
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 128 << 10]);
            loop {
                match recv(&fd, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                    Err(rustix::io::Errno::AGAIN) if stopped.load(Ordering::Relaxed) => return frames,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(error) => panic!("capturing: {error}"),
                }
            }
        });
        is_ready.recv().expect("the capture begins");
        Self { stop, reading }
    }

    /// Ends it, once nothing has come for a moment.
    ///
    /// # Panics
    /// When the capture failed.
    pub fn stop(self) -> Frames {
        self.stop.store(true, Ordering::Relaxed);
        Frames(self.reading.join().expect("the capture did not fail"))
    }
}

impl Frames {
    /// Frames in which the text can be read.
    pub fn with(&self, text: &str) -> usize {
        let text = text.as_bytes();
        self.0.iter().filter(|frame| frame.windows(text.len()).any(|window| window == text)).count()
    }

    /// UDP datagrams over IPv4 to the port.
    pub fn udp_to(&self, port: u16) -> usize {
        let to_port =
            |f: &&Vec<u8>| f.len() > 42 && f[12..15] == [8, 0, 0x45] && f[23] == 17 && f[36..38] == port.to_be_bytes();
        self.0.iter().filter(to_port).count()
    }
}
