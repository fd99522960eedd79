//! What benchmarks share.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::path::Path;
use std::process::{Command, Stdio};

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
