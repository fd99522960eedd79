//! What probes and hooks do to a container: run a program in it, or ask it by HTTP or TCP from inside its sandbox.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use skep_engine::containers::Containers;
use skep_proto::model::ContainerId;
use skep_proto::model::pod::{Action, HttpGet};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::tls;

/// Where an action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The container.
    pub container: ContainerId,
    /// The file that keeps the sandbox's network namespace; `None` for the node's own.
    pub netns: Option<PathBuf>,
    /// The task's address there.
    pub address: IpAddr,
}

/// Does the action.
///
/// # Errors
/// What went wrong, for people.
///
/// # Cancel safety
/// A program that was started is killed, a connection closed.
pub async fn act(containers: &Containers, target: &Target, action: &Action, most: Duration) -> Result<(), String> {
    let late = || format!("no answer within {} s", most.as_secs_f64());
    match action {
        Action::Exec { command } => match containers.probe(target.container, command.clone(), most).await {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => {
                let output = result.output.trim();
                Err(if output.is_empty() { format!("exit code {}", result.exit_code) } else { output.to_owned() })
            }
            Err(error) => Err(error.to_string()),
        },
        Action::HttpGet(get) => timeout(most, http(target, get)).await.map_err(|_| late())?,
        Action::TcpSocket { host, port } => {
            let asked = async { connect(target, host, *port).await.map(drop) };
            timeout(most, asked).await.map_err(|_| late())?
        }
        Action::Sleep { time } => {
            tokio::time::sleep(*time).await;
            Ok(())
        }
    }
}

async fn connect(target: &Target, host: &str, port: u16) -> Result<TcpStream, String> {
    let address = match host {
        "" => target.address,
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().map_err(|_| format!("the host {host:?} is no address"))?,
    };
    let failed = |error: std::io::Error| format!("connecting to {address}:{port}: {error}");
    let is_v4 = address.is_ipv4();
    let socket = match &target.netns {
        Some(netns) => socket_in(netns, is_v4).await,
        None => new_socket(is_v4),
    };
    socket.map_err(failed)?.connect(SocketAddr::new(address, port)).await.map_err(failed)
}

fn new_socket(is_v4: bool) -> std::io::Result<TcpSocket> {
    if is_v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// A socket belongs to the namespace that its thread is in when it is made. The thread is one of its own and ends here: it
/// needs no way back.
async fn socket_in(netns: &Path, is_v4: bool) -> std::io::Result<TcpSocket> {
    let (netns, (sender, receiver)) = (netns.to_owned(), tokio::sync::oneshot::channel());
    std::thread::Builder::new().name("probe".into()).spawn(move || {
        let made = std::fs::File::open(&netns).and_then(|file| {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)?;
            new_socket(is_v4)
        });
        // Nobody waits any more: the socket is closed.
        let _ = sender.send(made);
    })?;
    receiver.await.map_err(|_| std::io::Error::other("the thread ended"))?
}

async fn http(target: &Target, get: &HttpGet) -> Result<(), String> {
    let stream = connect(target, &get.host, get.port).await?;
    let status = if get.tls {
        let name = if get.host.is_empty() { target.address.to_string() } else { get.host.clone() };
        ask(tls::connect(stream, &name).await?, target, get).await?
    } else {
        ask(stream, target, get).await?
    };
    // As the kubelet: a redirection is an answer.
    if status.as_u16() >= 200 && status.as_u16() < 400 {
        Ok(())
    } else {
        Err(format!("HTTP status {}", status.as_u16()))
    }
}

async fn ask<S>(stream: S, target: &Target, get: &HttpGet) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("asking by HTTP: {}", crate::chain(&error));
    let request = request(target, get)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut asked = std::pin::pin!(sender.send_request(request));
    // The connection does the work. Nobody reads the body.
    let answer: Result<Response<Incoming>, hyper::Error> = tokio::select! {
        biased;
        answer = &mut asked => answer,
        // It may have brought the answer with its end.
        _ = connection => asked.await,
    };
    answer.map(|answer| answer.status()).map_err(failed)
}

fn request(target: &Target, get: &HttpGet) -> Result<Request<String>, String> {
    let host = if get.host.is_empty() { target.address.to_string() } else { get.host.clone() };
    let mut request = Request::get(get.path.as_str())
        .header(HOST, format!("{host}:{}", get.port))
        .header(USER_AGENT, "skep-probe")
        .body(String::new())
        .map_err(|error| error.to_string())?;
    for header in &get.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_str(&header.value).map_err(|error| error.to_string())?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use skep_proto::model::pod::Header;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn here() -> Target {
        Target { container: ContainerId([0; 32]), netns: None, address: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    /// A server that answers every connection with these bytes; what it was asked goes to the receiver.
    async fn server(answer: &'static str) -> (u16, tokio::sync::mpsc::Receiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = vec![0; 4096];
                let read = stream.read(&mut asked).await.unwrap_or(0);
                let _ = sender.try_send(String::from_utf8_lossy(&asked[..read]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, receiver)
    }

    fn get(port: u16) -> HttpGet {
        let headers = vec![Header { name: "X-Probe".into(), value: "yes".into() }];
        HttpGet { port, path: "/healthz?full=1".into(), headers, ..HttpGet::default() }
    }

    #[tokio::test]
    async fn http_counts_from_200_to_399() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", true),
            ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false),
            ("nonsense\r\n\r\n", false),
        ] {
            let (port, mut asked) = server(answer).await;
            let result = http(&here(), &get(port)).await;
            assert_eq!(result.is_ok(), good, "{answer:?}: {result:?}");
            let asked = asked.recv().await.unwrap().to_ascii_lowercase();
            assert!(asked.starts_with("get /healthz?full=1 http/1.1\r\n"), "{asked}");
            assert!(asked.contains("x-probe: yes") && asked.contains("host: 127.0.0.1"), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_port_that_listens_is_enough_for_tcp() {
        let (port, _asked) = server("").await;
        assert!(connect(&here(), "", port).await.is_ok());
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert!(connect(&here(), "", closed).await.unwrap_err().contains("refused"));
        assert!(connect(&here(), "example.org", 80).await.unwrap_err().contains("no address"));
    }
}
