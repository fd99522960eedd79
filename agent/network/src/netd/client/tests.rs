use super::*;
use crate::netd::told::Told;

/// A process as it was before there were changes of zones: gives all that it was told.
async fn older_process(listener: tokio::net::UnixListener) -> Vec<Request> {
    let mut asked = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let request: Request = protocol::read(&mut stream).await.unwrap();
        let reply = match request {
            Request::Watch => Reply::Process(1),
            Request::PutZones(_) | Request::Stop => Reply::Done,
            _ => Reply::Refused { retry: false, reason: format!("{}: unknown variant", protocol::NOT_UNDERSTOOD) },
        };
        let is_last = request == Request::Stop;
        asked.push(request);
        protocol::write(&mut stream, &reply).await.unwrap();
        if is_last {
            break;
        }
    }
    asked
}

#[tokio::test]
async fn a_process_that_does_not_know_changes_is_put_all_zones() {
    let folder = tempfile::tempdir().unwrap();
    let serving = tokio::spawn(older_process(socket::listen(folder.path()).unwrap()));
    let client = Client::start(ClientConfig::new(folder.path(), "/nonexistent")).await.unwrap();
    assert!(!client.patch_zones(ZonesPatch::default()).await.unwrap(), "nothing was put yet");
    for _ in 0..2 {
        client.put_zones(Zones::new()).await.unwrap();
        assert!(!client.patch_zones(ZonesPatch::default()).await.unwrap());
    }
    // There is no newer program here to replace it by, so it serves on.
    assert!(client.shared.telling.lock().replaced);
    client.stop().await.unwrap();
    let asked = serving.await.unwrap();
    let is_put = |request: &&Request| matches!(request, Request::PutZones(Told { edition: Some(_), .. }));
    assert_eq!(asked.iter().filter(is_put).count(), 2);
    assert_eq!(asked.iter().filter(|request| matches!(request, Request::PatchZones(_))).count(), 2);
}
