//! Streams as bytes on the socket: what libraries see beneath the CLI.

use std::sync::Arc;
use std::time::Duration;

use skep_api::ports::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::fake::World;

struct Face {
    folder: tempfile::TempDir,
    stop: CancellationToken,
    world: Arc<World>,
}

impl Drop for Face {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Face {
    async fn open() -> Self {
        let world = World::ready(&["nodeA", "nodeB"]).await;
        let folder = tempfile::tempdir().unwrap();
        let listener = skep_api::docker::bind_unix(&folder.path().join("s")).await.unwrap();
        let stop = CancellationToken::new();
        let router = skep_api::docker::router(world.ports());
        tokio::spawn(skep_api::docker::serve(listener, router, stop.clone(), Duration::from_secs(1)));
        Self { folder, stop, world }
    }

    async fn connect(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("s")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn post(&self, path: &str, body: &str, headers: &str) -> UnixStream {
        self.connect(&format!(
            "POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await
    }

    /// A request whose answer ends with the connection; gives all of it.
    async fn whole(&self, path: &str, body: &str) -> String {
        let mut stream = self.post(path, body, "Connection: close\r\n").await;
        read_until(&mut stream, |_| false).await
    }

    /// A container that waits, named `c`.
    async fn container(&self, words: &str) {
        let body = format!(r#"{{"Image":"bb:1","Cmd":{words},"OpenStdin":true,"StdinOnce":true}}"#);
        let answer = self.whole("/containers/create?name=c1", &body).await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

/// Reads until `enough`, or the end.
async fn read_until(stream: &mut UnixStream, enough: impl Fn(&str) -> bool) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..n]);
            if enough(&String::from_utf8_lossy(&bytes)) {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer within ten seconds");
    String::from_utf8_lossy(&bytes).into_owned()
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
const ATTACH: &str = "/containers/c1/attach?stream=1&stdin=1&stdout=1&stderr=1";

#[tokio::test]
async fn an_upgrade_is_answered_in_dockers_words_and_each_way_closes_on_its_own() {
    let face = Face::open().await;
    face.container(r#"["cat"]"#).await;
    let mut stream = face.post(&format!("/v1.41{ATTACH}"), "", UPGRADE).await;
    let head = read_until(&mut stream, |t| t.contains("\r\n\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
    assert!(head.contains("content-type: application/vnd.docker.raw-stream\r\n"), "{head}");
    assert!(face.whole("/containers/c1/start", "").await.starts_with("HTTP/1.1 204"));
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let rest = read_until(&mut stream, |_| false).await;
    assert_eq!(rest, "\u{1}\0\0\0\0\0\0\u{5}hello");
}

#[tokio::test]
async fn a_newer_client_is_told_that_the_stream_has_frames() {
    let face = Face::open().await;
    face.container(r#"["cat"]"#).await;
    let mut stream = face.post(ATTACH, "", UPGRADE).await;
    let head = read_until(&mut stream, |t| t.contains("\r\n\r\n")).await;
    assert!(head.contains("content-type: application/vnd.docker.multiplexed-stream\r\n"), "{head}");
}

#[tokio::test]
async fn a_client_without_upgrade_gets_the_frames_as_an_answer() {
    let face = Face::open().await;
    face.container(r#"["sleep","9"]"#).await;
    face.whole("/containers/c1/start", "").await;
    let created = face.whole("/containers/c1/exec", r#"{"Cmd":["echo","hi"],"AttachStdout":true}"#).await;
    let id = created.split('"').find(|part| part.len() == 64).unwrap().to_owned();
    let answer = face.whole(&format!("/exec/{id}/start"), "{}").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\u{1}\0\0\0\0\0\0\u{3}hi\n"), "{answer:?}");
}

#[tokio::test]
async fn the_headers_of_a_wait_come_before_its_container_ends() {
    let face = Face::open().await;
    face.container(r#"["sleep","9"]"#).await;
    let mut waiting = face.post("/containers/c1/wait?condition=next-exit", "", "").await;
    let head = read_until(&mut waiting, |t| t.contains("\r\n\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("StatusCode"), "{head}");
    face.whole("/containers/c1/start", "").await;
    face.whole("/containers/c1/kill?signal=KILL", "").await;
    let body = read_until(&mut waiting, |t| t.contains("StatusCode")).await;
    assert!(body.contains(r#"{"Error":null,"StatusCode":137}"#), "{body}");
}

#[tokio::test]
async fn an_upgrade_passes_through_to_a_container_of_another_node() {
    let face = Face::open().await;
    let spec =
        r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"bb:1","Args":["sleep","9"]}},"Mode":{"Global":{}}}"#;
    assert!(face.whole("/services/create", spec).await.starts_with("HTTP/1.1 201"));
    let name = face.world.engine("nodeB").containers(true).await.unwrap()[0].config.name.clone();
    let body = r#"{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true}"#;
    let created = face.whole(&format!("/containers/{name}/exec"), body).await;
    let id = created.split('"').find(|part| part.len() == 64).unwrap().to_owned();
    let mut stream = face.post(&format!("/v1.41/exec/{id}/start"), "{}", UPGRADE).await;
    let head = read_until(&mut stream, |t| t.contains("\r\n\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
    stream.write_all(b"there and back").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_until(&mut stream, |_| false).await, "\u{1}\0\0\0\0\0\0\u{e}there and back");
    let mut get = face.connect(&format!("GET /exec/{id}/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")).await;
    assert!(read_until(&mut get, |_| false).await.contains(r#""ExitCode":0"#));
}

#[tokio::test]
async fn detach_keys_end_the_stream_and_leave_the_process() {
    let face = Face::open().await;
    let body = r#"{"Image":"bb:1","Cmd":["sleep","9"],"OpenStdin":true,"Tty":true}"#;
    face.whole("/containers/create?name=c1", body).await;
    face.whole("/containers/c1/start", "").await;
    let mut stream = face.post(&format!("{ATTACH}&detachKeys=ctrl-a,x"), "", UPGRADE).await;
    read_until(&mut stream, |t| t.contains("\r\n\r\n")).await;
    stream.write_all(b"\x01x").await.unwrap();
    assert_eq!(read_until(&mut stream, |_| false).await, "");
    let container = face.world.engine("nodeA").container("c1").await.unwrap();
    assert_eq!(container.state.status.as_str(), "running");
}
