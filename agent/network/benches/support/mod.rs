//! What benchmarks share.
#![allow(dead_code, reason = "each benchmark uses its part")]

pub mod bare;
pub mod cost;
pub mod wire;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{serve_udp, within};

/// A number from the environment.
pub fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Gbit/s that arrive.
pub fn measure(from: &Path, to: &Path, address: &str, streams: u32, seconds: u32) -> f64 {
    let inside = |netns: &Path| format!("--net={}", netns.display());
    let mut server = Command::new("nsenter")
        .args([&inside(to), "iperf3", "-s", "-1", "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line says that it listens.
    let mut output = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0, "iperf3 does not listen");
    }
    let (streams, seconds) = (streams.to_string(), seconds.to_string());
    let client = Command::new("nsenter")
        .args([&inside(from), "iperf3", "-c", address, "-P", &streams, "-t", &seconds, "-f", "m"])
        .output()
        .unwrap();
    std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    server.wait().unwrap();
    let text = String::from_utf8_lossy(&client.stdout).into_owned();
    let wanted = if streams == "1" { "receiver" } else { "[SUM]" };
    let line = text.lines().rfind(|line| line.contains(wanted) && line.contains("receiver"));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&client.stderr)));
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "Mbits/sec").unwrap();
    words[at - 1].parse::<f64>().unwrap() / 1000.0
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The machine's load of the last minute, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Seconds that the threads of all WireGuard devices of this process have had a processor.
pub fn device_cpu() -> f64 {
    let used = |task: std::io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        // proc_pid_stat(5): user and system time are the 14th and the 15th field, in hundredths; the name ends the second.
        let (name, rest) = stat.split_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        name.contains("(wg-").then_some((user + system) / 100.0)
    };
    fs::read_dir("/proc/self/task").unwrap().filter_map(used).sum()
}

/// Microseconds of round trips of a datagram on a way that is idle otherwise: the median, and of a hundred the slowest but one.
pub fn round_trip(from: &Path, to: &Path, address: &str, count: u32) -> [f64; 2] {
    const PORT: u16 = 7;
    serve_udp(to, PORT, "");
    let target = format!("{address}:{PORT}");
    let times = within(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let once = |_| {
            std::thread::sleep(Duration::from_millis(2));
            let began = Instant::now();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 64]).unwrap();
            began.elapsed().as_secs_f64() * 1e6
        };
        (0..count).map(once).collect::<Vec<_>>()
    });
    let mut times = times.join().unwrap();
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 99 / 100]]
}
