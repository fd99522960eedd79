//! As much of HTTP/1.1 (RFC 9112) as the server needs: requests with or without a body, connections that go on.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Longest head of a request in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// A request without its body.
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// In the order in which they came.
    pub headers: Vec<(String, String)>,
    /// Another request may follow.
    pub keep_alive: bool,
    /// The answer has no body.
    pub head: bool,
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Wraps a socket.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Reads the next request; its body is read and dropped. `None` when the client is done.
    pub fn next(&mut self) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > MAX_HEAD {
                return self.refuse("431 Request Header Fields Too Large");
            }
            if !self.read()? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let Some((request, body)) = parse(&head) else { return self.refuse("400 Bad Request") };
        self.skip(body)?;
        Ok(Some(request))
    }

    /// Sends an answer.
    pub fn answer(&mut self, request: &Request, status: &str, kind: &str, body: &str) -> io::Result<()> {
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let mut message = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        if !request.head {
            message.push_str(body);
        }
        self.stream.write_all(message.as_bytes())
    }

    fn refuse(&mut self, status: &str) -> io::Result<Option<Request>> {
        let message = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        self.stream.write_all(message.as_bytes())?;
        Ok(None)
    }

    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let len = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..len]);
        Ok(len > 0)
    }

    fn skip(&mut self, mut body: u64) -> io::Result<()> {
        while body > 0 {
            if self.buffer.is_empty() && !self.read()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = usize::try_from(body).unwrap_or(usize::MAX).min(self.buffer.len());
            self.buffer.drain(..part);
            body -= part as u64;
        }
        Ok(())
    }
}

/// The request, and the length of its body. A body of unknown length cannot be skipped: refused.
fn parse(head: &str) -> Option<(Request, u64)> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    let headers: Option<Vec<_>> =
        lines.map(|l| l.split_once(':').map(|(n, v)| (n.to_owned(), v.trim().to_owned()))).collect();
    let headers = headers?;
    let value = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    if value("transfer-encoding").is_some() {
        return None;
    }
    let body = value("content-length").map_or(Some(0), |v| v.parse().ok())?;
    let keep_alive = match value("connection") {
        Some(v) if v.eq_ignore_ascii_case("close") => false,
        Some(v) if v.eq_ignore_ascii_case("keep-alive") => true,
        _ => version != "HTTP/1.0",
    };
    let head = method == "HEAD";
    Some((Request { method: method.to_owned(), target: target.to_owned(), headers, keep_alive, head }, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_parsed_and_nonsense_is_refused() {
        let (request, body) = parse("POST /a?b HTTP/1.1\r\nHost: x:1\r\nContent-Length: 7").unwrap();
        assert_eq!((request.target.as_str(), body, request.keep_alive), ("/a?b", 7, true));
        assert_eq!(request.headers[0], ("Host".to_owned(), "x:1".to_owned()));
        assert!(!parse("GET / HTTP/1.0").unwrap().0.keep_alive);
        for bad in ["", "GET /", "GET / SPDY/1", "GET / HTTP/1.1\r\nnonsense", "GET / HTTP/1.1\r\nContent-Length: x"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert!(parse("POST / HTTP/1.1\r\nTransfer-Encoding: chunked").is_none());
    }
}
