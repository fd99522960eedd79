//! What a packet's way takes of a processor, counted and not timed: on a busy machine the count is the same.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Bytes of a datagram.
const SIZE: usize = 1000;
/// Datagrams in a row. After more of them the kernel would leave the rest of their way to a thread of its own.
const ROW: u32 = 10;

/// Sends datagrams: what [`instructions`] starts in another process.
pub fn send(to: &str, count: u32) {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    for number in 0..count {
        if number % ROW == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
        // An answer that nobody listens is an error of the next one.
        let _ = socket.send(&[0; SIZE]);
    }
}

/// Instructions in the kernel for a datagram of 1,000 bytes from `from` until it lies at the socket of whom it is for. All links on
/// its way are of this machine, so that its sender's processor carries it there before the call returns. `None` without perf(1) or
/// without the processor's counters.
pub fn instructions(from: &Path, to: &str) -> Option<f64> {
    let (few, many) = (2_000, 10_000);
    let counts: Option<Vec<f64>> = [few, many].map(|count| counted(from, to, count)).into_iter().collect();
    counts.map(|counts| (counts[1] - counts[0]) / f64::from(many - few))
}

fn counted(from: &Path, to: &str, count: u32) -> Option<f64> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", from.display()))
        .args(["perf", "stat", "-x,", "-e", "instructions:k"])
        .arg(std::env::current_exe().unwrap())
        .args(["send", to, &count.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().find_map(|line| line.split(',').next()?.parse().ok())
}
