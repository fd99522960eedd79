//! The program of the built-in image: an HTTP server that tells who it is and who asks.
//!
//! | path | answer |
//! |---|---|
//! | `/` | lines `Hostname:`, `IP:`, `RemoteAddr:`, then the request line and its headers |
//! | `/json` | the same as JSON, with the task, service and node that the agent put into the environment |
//! | `/health` | `200`, or `503` as options or an earlier request want it |
//! | `/health?status=N` | the answer to all later `/health` is N, 200 or 503 |
//! | `/load?ms=N` | keeps one CPU busy for N milliseconds, a minute at most |
//!
//! One small thread a connection. It ends with code 0 on SIGTERM, which a pid 1 has to see to itself; requests under way
//! are answered before.
//!
//! `whoami probe` is a health check: it asks a server in the same network namespace. As the image has no shell, the
//! program stands in for one where it is called `sh`: it runs such lines, and no others.

mod http;
mod options;
mod probe;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::http::{Connection, Request};
use self::options::Options;
pub use self::probe::shell;
use crate::sys;

/// Stack of a connection's thread in bytes: it holds one buffer and formats text.
const STACK: usize = 64 * 1024;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(75);

/// How long requests that are under way at the end may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// What all connections share.
struct Server {
    options: Options,
    started: Instant,
    /// Status that `/health` was told to answer; 0 when it was not told.
    told: AtomicU16,
    /// Requests under way.
    busy: AtomicUsize,
}

/// Serves until the process is ended, or probes a server.
pub fn main(words: &[OsString]) -> ExitCode {
    if let Some((_, options)) = words.split_first().filter(|(first, _)| *first == "probe") {
        return probe::main(options);
    }
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("whoami: {text}\n{}", options::USAGE);
            return ExitCode::from(crate::EX_USAGE);
        }
    };
    match serve(options) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("whoami: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> io::Result<u8> {
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = sys::EndSignals::block();
    let started = Instant::now();
    let deadline = options.crash_after.map(|after| started + after);
    if signals.wait(options.sleep) {
        return Ok(0);
    }
    let http = listen(options.port)?;
    let server = Arc::new(Server { options, started, told: AtomicU16::default(), busy: AtomicUsize::default() });
    let (shared, options) = (server.clone(), &server.options);
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
            server.finish();
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

impl Server {
    /// Waits for the requests under way, and for those that came in with the signal.
    fn finish(&self) {
        let (since, mut quiet) = (Instant::now(), 0);
        while quiet < 2 && since.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(10));
            quiet = if self.busy.load(Ordering::SeqCst) == 0 { quiet + 1 } else { 0 };
        }
    }

    fn health(&self) -> u16 {
        let (told, up) = (self.told.load(Ordering::Relaxed), self.started.elapsed());
        let is_well = up >= self.options.healthy_after && self.options.unhealthy_after.is_none_or(|after| up < after);
        match (told, is_well) {
            (0, true) => 200,
            (0, false) => 503,
            (told, _) => told,
        }
    }
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming().flatten() {
        let mut turn = Turn { server: server.clone(), is_busy: false };
        // From now on: its request may be on its way.
        turn.set_busy(true);
        // Without a thread the connection is closed: the client tries again.
        let _ = spawn("request", move || drop(converse(stream, turn)));
    }
}

/// One connection's part in what is under way.
struct Turn {
    server: Arc<Server>,
    is_busy: bool,
}

impl Turn {
    fn set_busy(&mut self, is_busy: bool) {
        match (self.is_busy, is_busy) {
            (false, true) => drop(self.server.busy.fetch_add(1, Ordering::SeqCst)),
            (true, false) => drop(self.server.busy.fetch_sub(1, Ordering::SeqCst)),
            (true, true) | (false, false) => {}
        }
        self.is_busy = is_busy;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

fn converse(stream: TcpStream, mut turn: Turn) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let peer = canonical(stream.peer_addr()?);
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.next()? {
        turn.set_busy(true);
        let (status, kind, body) = answer(&request, peer, &turn.server);
        connection.answer(&request, status, kind, &body)?;
        if !request.keep_alive {
            break;
        }
        turn.set_busy(false);
    }
    Ok(())
}

/// Status, content type and body.
fn answer(request: &Request, peer: SocketAddr, server: &Server) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let number = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)).and_then(|n| n.parse().ok());
    match path {
        "/health" => {
            if let Some(told @ (200 | 503)) = number("status=") {
                server.told.store(u16::try_from(told).unwrap_or_default(), Ordering::Relaxed);
            }
            match server.health() {
                200 => ("200 OK", TEXT, "ok\n".to_owned()),
                _ => ("503 Service Unavailable", TEXT, "not well\n".to_owned()),
            }
        }
        "/json" => ("200 OK", "application/json", json(request, peer, &server.options)),
        "/load" => {
            let wanted = number("ms=").unwrap_or(0);
            let rounds = load(Duration::from_millis(wanted).min(Duration::from_secs(60)));
            ("200 OK", TEXT, format!("{rounds} rounds in {wanted} ms\n"))
        }
        "/" => ("200 OK", TEXT, text(request, peer, &server.options)),
        _ => ("404 Not Found", TEXT, "not found\n".to_owned()),
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

    fn server(options: Options) -> Arc<Server> {
        Arc::new(Server { options, started: Instant::now(), told: AtomicU16::default(), busy: AtomicUsize::default() })
    }

    #[test]
    fn health_follows_the_options_until_it_is_told_otherwise() {
        let well = |options| server(options).health();
        assert_eq!(well(Options::default()), 200);
        assert_eq!(well(Options { healthy_after: Duration::from_secs(60), ..Options::default() }), 503);
        assert_eq!(well(Options { unhealthy_after: Some(Duration::ZERO), ..Options::default() }), 503);
        let server = server(Options::default());
        let ask = |target: &str| {
            let request = Request {
                method: "GET".into(),
                target: target.into(),
                headers: Vec::new(),
                keep_alive: false,
                head: false,
            };
            answer(&request, "10.1.2.3:40".parse().unwrap(), &server).0
        };
        assert_eq!(ask("/health?status=503"), "503 Service Unavailable");
        assert_eq!(ask("/health"), "503 Service Unavailable");
        assert_eq!(ask("/health?status=200"), "200 OK");
    }

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
        let server = server(Options::default());
        std::thread::spawn(move || accept(&listener, &server));
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
