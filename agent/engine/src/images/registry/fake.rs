//! A registry for tests, on a port of its own, that fails on request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::super::digest::Digest;
use super::super::fixture::Sample;

/// What the registry asks of clients.
#[derive(Default, Clone, Copy, PartialEq)]
pub enum Login {
    #[default]
    None,
    /// Basic authentication, `user` and `secret`.
    Basic,
    /// A token of the registry's own token server, for `user` and `secret`, or the refresh token `refresh`.
    Bearer,
}

/// What the registry does wrong.
#[derive(Default)]
pub struct Faults {
    /// Cut so many blob answers half way.
    pub cuts: usize,
    /// Answer so many requests with 503.
    pub unavailable: usize,
    /// Do not know ranges.
    pub no_ranges: bool,
    /// Give other bytes, of the same length, for blobs.
    pub forged: bool,
    /// Give more bytes than the manifest says.
    pub endless: bool,
}

#[derive(Default)]
struct Content {
    /// By path below `/v2/`: media type and bytes.
    documents: HashMap<String, (String, Vec<u8>)>,
    login: Login,
    faults: Faults,
    /// Request line and range of each request.
    requests: Vec<String>,
}

pub struct FakeRegistry {
    pub address: String,
    content: Arc<Mutex<Content>>,
    _server: AbortOnDropHandle<()>,
}

impl FakeRegistry {
    pub async fn start(login: Login, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content { login, faults, ..Content::default() }));
        let (shared, own) = (content.clone(), address.clone());
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (content, address) = (shared.clone(), own.clone());
                tokio::spawn(async move {
                    // A client that went away is no fault of the registry.
                    let _ = serve(stream, &content, &address).await;
                });
            }
        });
        Self { address, content, _server: AbortOnDropHandle::new(server) }
    }

    pub fn add(&self, repository: &str, tag: &str, sample: &Sample) {
        let mut content = self.content.lock().unwrap();
        for blob in sample.layers.iter().chain([&sample.config]) {
            let path = format!("{repository}/blobs/{}", Digest::of(blob));
            content.documents.insert(path, ("application/octet-stream".into(), blob.clone()));
        }
        drop(content);
        self.add_manifest(repository, tag, &sample.manifest);
    }

    pub fn add_manifest(&self, repository: &str, tag: &str, manifest: &[u8]) {
        let json: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let media_type = json["mediaType"].as_str().unwrap().to_owned();
        let mut content = self.content.lock().unwrap();
        for name in [tag.to_owned(), Digest::of(manifest).to_string()] {
            let document = (media_type.clone(), manifest.to_vec());
            content.documents.insert(format!("{repository}/manifests/{name}"), document);
        }
    }

    /// Requests for blobs of a layer, with their ranges.
    pub fn requests_for(&self, blob: &[u8]) -> Vec<String> {
        let digest = Digest::of(blob).to_string();
        self.content.lock().unwrap().requests.iter().filter(|line| line.contains(&digest)).cloned().collect()
    }

    pub fn forget_requests(&self) {
        self.content.lock().unwrap().requests.clear();
    }

    pub fn requests(&self) -> usize {
        self.content.lock().unwrap().requests.len()
    }
}

struct Request {
    path: String,
    authorization: String,
    range: Option<usize>,
    body: String,
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, authorization: String::new(), range: None, body: String::new() };
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((key, value)) = line.trim_end().split_once(": ") else { break };
        match key.to_ascii_lowercase().as_str() {
            "authorization" => value.clone_into(&mut request.authorization),
            "range" => request.range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

async fn serve(stream: TcpStream, content: &Mutex<Content>, address: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        let answer = answer(&mut content.lock().unwrap(), &request, address);
        let (head, body, whole) = answer;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
        if !whole {
            return Ok(());
        }
    }
    Ok(())
}

/// Head, body, and whether the connection goes on.
fn answer(content: &mut Content, request: &Request, address: &str) -> (String, Vec<u8>, bool) {
    let reply = |status: &str, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        (head, body.to_vec(), true)
    };
    content.requests.push(format!("{} {:?}", request.path, request.range));
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:secret"));
    if request.path.starts_with("/token") {
        let refreshed =
            request.body.contains("grant_type=refresh_token") && request.body.contains("refresh_token=refresh");
        return match request.authorization == basic || refreshed {
            true => reply("200 OK", "", br#"{"token":"granted"}"#),
            false => reply("401 Unauthorized", "", br#"{"details":"incorrect username or password"}"#),
        };
    }
    let challenge = match content.login {
        Login::None => None,
        Login::Basic if request.authorization == basic => None,
        Login::Basic => Some("Basic realm=\"fake\"".to_owned()),
        Login::Bearer if request.authorization == "Bearer granted" => None,
        Login::Bearer => Some(format!("Bearer realm=\"http://{address}/token\",service=\"fake\"")),
    };
    if let Some(challenge) = challenge {
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        return reply("401 Unauthorized", &format!("WWW-Authenticate: {challenge}\r\n"), body);
    }
    if content.faults.unavailable > 0 {
        content.faults.unavailable -= 1;
        return reply("503 Service Unavailable", "", b"later");
    }
    let path = request.path.trim_start_matches("/v2/");
    if path.is_empty() {
        return reply("200 OK", "", b"{}");
    }
    let Some((media_type, bytes)) = content.documents.get(path).cloned() else {
        let code = if path.contains("/manifests/") { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" };
        let message = code.to_lowercase().replace('_', " ");
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        return reply("404 Not Found", "", body.as_bytes());
    };
    let media_type = format!("Content-Type: {media_type}\r\n");
    // Configurations are small; faults are for layers.
    if !path.contains("/blobs/") || bytes.starts_with(b"{") {
        return reply("200 OK", &media_type, &bytes);
    }
    let faults = &mut content.faults;
    let bytes = if faults.forged { vec![b'?'; bytes.len()] } else { bytes };
    let bytes = if faults.endless { [bytes, vec![0; 100_000]].concat() } else { bytes };
    let (status, rest) = match request.range {
        Some(offset) if !faults.no_ranges => ("206 Partial Content", &bytes[offset..]),
        _ => ("200 OK", &bytes[..]),
    };
    let (head, body, _) = reply(status, &media_type, rest);
    if faults.cuts > 0 {
        faults.cuts -= 1;
        return (head, body[..body.len() / 2].to_vec(), false);
    }
    (head, body, true)
}
