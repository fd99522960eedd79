//! The program of the built-in image: an HTTP server that tells who it is and who asks.
//!
//! | path | answer |
//! |---|---|
//! | `/` | lines `Hostname:`, `IP:`, `RemoteAddr:`, then the request line and its headers |
//! | `/json` | the same as JSON, with the task, service and node that the agent put into the environment |
//! | `/health` | `200` |
//! | `/load?ms=N` | keeps one CPU busy for N milliseconds, a minute at most |
//!
//! One small thread a connection. It ends with code 0 on SIGTERM, which a pid 1 has to see to itself.

mod http;
mod options;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::http::{Connection, Request};
use self::options::Options;
use crate::sys;

/// Stack of a connection's thread in bytes: it holds one buffer and formats text.
const STACK: usize = 64 * 1024;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(75);

/// Serves until the process is ended.
pub fn main(words: &[OsString]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(options) => Arc::new(options),
        Err(text) => {
            eprintln!("whoami: {text}\n{}", options::USAGE);
            return ExitCode::from(crate::EX_USAGE);
        }
    };
    match serve(&options) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("whoami: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Arc<Options>) -> io::Result<u8> {
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = sys::EndSignals::block();
    let started = Instant::now();
    let deadline = options.crash_after.map(|after| started + after);
    if signals.wait(options.sleep) {
        return Ok(0);
    }
    let http = listen(options.port)?;
    let shared = options.clone();
    spawn("http", move || accept(&http, &shared))?;
    for port in options.tcp_echo.iter().copied() {
        let listener = listen(port)?;
        spawn("tcp-echo", move || accept_echo(&listener))?;
    }
    for port in options.udp_echo.iter().copied() {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)))?;
        spawn("udp-echo", move || echo_datagrams(&socket))?;
    }
    loop {
        let rest = deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
        if signals.wait(rest) {
            return Ok(0);
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Ok(options.exit_code);
        }
    }
}

/// Both families where there are both.
fn listen(port: u16) -> io::Result<TcpListener> {
    let bound = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    bound.map_err(|e| io::Error::new(e.kind(), format!("listening on port {port}: {e}")))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work).map(drop)
}

fn accept(listener: &TcpListener, options: &Arc<Options>) {
    for stream in listener.incoming().flatten() {
        let options = options.clone();
        // Without a thread the connection is closed: the client tries again.
        let _ = spawn("request", move || drop(converse(stream, &options)));
    }
}

fn converse(stream: TcpStream, options: &Options) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let peer = canonical(stream.peer_addr()?);
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.next()? {
        let (kind, body) = answer(&request, peer, options);
        let status = if kind.is_empty() { "404 Not Found" } else { "200 OK" };
        connection.answer(&request, status, kind, &body)?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

/// Content type and body; no type for a path that does not exist.
fn answer(request: &Request, peer: SocketAddr, options: &Options) -> (&'static str, String) {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match path {
        "/health" => ("text/plain; charset=utf-8", "ok\n".to_owned()),
        "/json" => ("application/json", json(request, peer, options)),
        "/load" => {
            let wanted = query.split('&').find_map(|p| p.strip_prefix("ms=")).and_then(|n| n.parse().ok()).unwrap_or(0);
            let rounds = load(Duration::from_millis(wanted).min(Duration::from_secs(60)));
            ("text/plain; charset=utf-8", format!("{rounds} rounds in {wanted} ms\n"))
        }
        "/" => ("text/plain; charset=utf-8", text(request, peer, options)),
        _ => ("", "not found\n".to_owned()),
    }
}

fn text(request: &Request, peer: SocketAddr, options: &Options) -> String {
    let mut text = String::new();
    if !options.name.is_empty() {
        text += &format!("Name: {}\n", options.name);
    }
    text += &format!("Hostname: {}\n", hostname());
    for ip in addresses() {
        text += &format!("IP: {ip}\n");
    }
    text += &format!("RemoteAddr: {peer}\n{} {} HTTP/1.1\n", request.method, request.target);
    for (name, value) in &request.headers {
        text += &format!("{name}: {value}\n");
    }
    text
}

fn json(request: &Request, peer: SocketAddr, options: &Options) -> String {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let headers: serde_json::Map<_, _> =
        request.headers.iter().map(|(n, v)| (n.clone(), serde_json::Value::from(v.as_str()))).collect();
    let value = serde_json::json!({
        "name": options.name,
        "hostname": hostname(),
        "ips": addresses(),
        "client": peer.ip().to_string(),
        "remoteAddr": peer.to_string(),
        "task": env("SKEP_TASK"),
        "service": env("SKEP_SERVICE"),
        "node": env("SKEP_NODE"),
        "method": request.method,
        "url": request.target,
        "headers": headers,
    });
    format!("{value}\n")
}

fn load(wanted: Duration) -> u64 {
    let since = Instant::now();
    let mut rounds = 0u64;
    while since.elapsed() < wanted {
        for n in 0..10_000u64 {
            rounds = std::hint::black_box(rounds.wrapping_add(n & 1));
        }
    }
    rounds
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// This network namespace's addresses, from the kernel's own lists.
fn addresses() -> Vec<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut all = local_ipv4(&read("/proc/net/fib_trie"));
    all.extend(local_ipv6(&read("/proc/net/if_inet6")));
    all
}

/// A leaf is a line with an address, and lines below it that say what it is.
fn local_ipv4(trie: &str) -> Vec<String> {
    let (mut found, mut leaf) = (Vec::new(), "");
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address;
        } else if line.starts_with("/32 host LOCAL") && !found.iter().any(|f| f == leaf) {
            found.push(leaf.to_owned());
        }
    }
    found
}

fn local_ipv6(list: &str) -> Vec<String> {
    let address = |line: &str| u128::from_str_radix(line.get(..32)?, 16).ok().map(|n| Ipv6Addr::from(n).to_string());
    list.lines().filter_map(address).collect()
}

/// An IPv4 client of a socket for both families is shown as what it is.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn accept_echo(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let _ = spawn("echo", move || drop(echo(stream)));
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            // As datagrams go: what cannot be sent is lost.
            let _ = socket.send_to(&buffer[..len], peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_lists() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n\
            Local:\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(local_ipv4(trie), ["10.0.0.5", "127.0.0.1"]);
        assert_eq!(local_ipv6("fe800000000000000000000000000001 02 40 20 80 eth0\n"), ["fe80::1"]);
    }

    #[test]
    fn the_text_has_the_lines_that_scripts_look_for() {
        let request = Request {
            method: "GET".into(),
            target: "/".into(),
            headers: vec![("Host".into(), "x".into())],
            keep_alive: true,
            head: false,
        };
        let got = text(&request, "10.1.2.3:40".parse().unwrap(), &Options::default());
        assert!(got.starts_with("Hostname: "), "{got}");
        assert!(got.contains("\nRemoteAddr: 10.1.2.3:40\nGET / HTTP/1.1\nHost: x\n"), "{got}");
    }

    #[test]
    fn a_request_over_a_socket_gets_its_answer_and_the_connection_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || accept(&listener, &Arc::default()));
        let mut client = TcpStream::connect(address).unwrap();
        client
            .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nPOST /nope HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
            .unwrap();
        client.write_all(b"GET /json HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        assert!(got.contains("HTTP/1.1 404 Not Found\r\n"), "{got}");
        assert!(got.contains("\"client\":\"127.0.0.1\""), "{got}");
    }
}
