use base64::Engine;
use futures_util::StreamExt;
use serde_json::json;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::engine::PullProgress;

use super::super::digest::Digest;
use super::super::document::OCI_INDEX;
use super::super::fixture::{Sample, World, world};
use super::super::{CollectPolicy, ImageError, PullPolicy};
use super::fake::{FakeRegistry, Faults, Login};

fn sample() -> Sample {
    let big = "0123456789".repeat(20_000);
    Sample::new("run", &[&[("a", "lower"), ("big", &big)], &[("a", "upper")]])
}

async fn setup(login: Login, faults: Faults) -> (World, FakeRegistry, Sample) {
    let (world, registry, sample) = (world().await, FakeRegistry::start(login, faults).await, sample());
    registry.add("app", "1", &sample);
    (world, registry, sample)
}

fn auth(json: &str) -> RegistryAuth {
    RegistryAuth(base64::engine::general_purpose::URL_SAFE.encode(json))
}

async fn pull(world: &World, reference: &str, auth: Option<&RegistryAuth>) -> Result<Vec<PullProgress>, ImageError> {
    let mut lines = Vec::new();
    let mut stream = world.images.pull(reference, None, auth).await?;
    while let Some(line) = stream.next().await {
        lines.push(line?);
    }
    Ok(lines)
}

/// Lines without those that only count bytes and those that depend on who is first.
fn shown(lines: &[PullProgress]) -> Vec<String> {
    let fixed = lines.iter().filter(|line| line.bytes.is_none() && line.status != "Waiting");
    fixed.map(|line| format!("{}|{}", line.id, line.status)).collect()
}

#[tokio::test]
async fn a_pull_tells_its_steps_in_dockers_words() {
    let (world, registry, sample) = setup(Login::None, Faults::default()).await;
    let reference = format!("{}/app:1", registry.address);
    let lines = shown(&pull(&world, &reference, None).await.unwrap());
    let short: Vec<String> = sample.layers.iter().map(|layer| Digest::of(layer).short()).collect();
    let digest = Digest::of(&sample.manifest);
    assert_eq!(
        lines[..3],
        [
            "1|Pulling from app".to_owned(),
            format!("{}|Pulling fs layer", short[0]),
            format!("{}|Pulling fs layer", short[1])
        ]
    );
    for layer in &short {
        let steps: Vec<&str> =
            lines.iter().filter_map(|line| line.strip_prefix(&format!("{layer}|"))).skip(1).collect();
        assert_eq!(steps, ["Verifying Checksum", "Download complete", "Pull complete"]);
    }
    assert_eq!(
        lines[lines.len() - 2..],
        [format!("|Digest: {digest}"), format!("|Status: Downloaded newer image for {reference}")]
    );
    let image = world.images.get(&reference).unwrap();
    assert_eq!(image.digests, [format!("{}/app@{digest}", registry.address)]);

    let again = shown(&pull(&world, &reference, None).await.unwrap());
    assert_eq!(
        again,
        [
            "1|Pulling from app".to_owned(),
            format!("{}|Already exists", short[0]),
            format!("{}|Already exists", short[1]),
            format!("|Digest: {digest}"),
            format!("|Status: Image is up to date for {reference}"),
        ]
    );
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let (world, registry, sample) = setup(Login::None, Faults { cuts: 3, ..Faults::default() }).await;
    pull(&world, &format!("{}/app:1", registry.address), None).await.unwrap();
    let all: Vec<String> = sample.layers.iter().flat_map(|layer| registry.requests_for(layer)).collect();
    assert_eq!(all.len(), 2 + 3, "{all:?}");
    assert!(all.iter().any(|request| !request.ends_with("None") && !request.ends_with("Some(0)")), "{all:?}");
    assert_eq!(world.images.list()[0].id, sample.id());
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_for_the_whole_again() {
    let (world, registry, _) = setup(Login::None, Faults { cuts: 2, no_ranges: true, ..Faults::default() }).await;
    pull(&world, &format!("{}/app:1", registry.address), None).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_away_for_a_moment_is_asked_again() {
    let (world, registry, _) = setup(Login::None, Faults { unavailable: 2, ..Faults::default() }).await;
    pull(&world, &format!("{}/app:1", registry.address), None).await.unwrap();
}

#[tokio::test]
async fn forged_and_overlong_blobs_are_refused_and_leave_nothing() {
    for faults in [Faults { forged: true, ..Faults::default() }, Faults { endless: true, ..Faults::default() }] {
        let forged = faults.forged;
        let (world, registry, sample) = setup(Login::None, faults).await;
        let error = pull(&world, &format!("{}/app:1", registry.address), None).await.unwrap_err();
        match forged {
            true => assert!(matches!(error, ImageError::WrongDigest { .. }), "{error}"),
            false => assert!(matches!(error, ImageError::Malformed(_)), "{error}"),
        }
        assert_eq!(world.images.list(), []);
        for layer in &sample.layers {
            let path = format!("content/blobs/sha256/{}", Digest::of(layer).hex());
            assert!(!world.folder.path().join(path).exists());
        }
    }
}

#[tokio::test]
async fn two_pulls_of_one_image_download_each_layer_once() {
    let (world, registry, sample) = setup(Login::None, Faults::default()).await;
    let reference = format!("{}/app:1", registry.address);
    let (first, second) = tokio::join!(pull(&world, &reference, None), pull(&world, &reference, None));
    first.unwrap();
    second.unwrap();
    for layer in &sample.layers {
        assert_eq!(registry.requests_for(layer).len(), 1);
    }
}

#[tokio::test]
async fn a_pull_that_nobody_watches_any_more_ends_and_the_next_succeeds() {
    let (world, registry, _) = setup(Login::None, Faults::default()).await;
    let reference = format!("{}/app:1", registry.address);
    let mut stream = world.images.pull(&reference, None, None).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    pull(&world, &reference, None).await.unwrap();
    world.images.collect(CollectPolicy::Dangling).await.unwrap();
    assert!(world.images.resolve(&reference, PullPolicy::Never, None).await.unwrap().layers.iter().all(|l| l.is_dir()));
}

#[tokio::test]
async fn layers_that_are_here_are_not_downloaded_again() {
    let (world, registry, sample) = setup(Login::None, Faults::default()).await;
    pull(&world, &format!("{}/app:1", registry.address), None).await.unwrap();
    let mut second = Sample::new("other", &[]);
    second.layers = vec![sample.layers[0].clone()];
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&second.layers[0])]}});
    second.config = serde_json::to_vec(&config).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
    manifest["config"] = json!({"digest": Digest::of(&second.config), "size": second.config.len()});
    manifest["layers"].as_array_mut().unwrap().truncate(1);
    second.manifest = serde_json::to_vec(&manifest).unwrap();
    registry.add("app", "2", &second);
    registry.forget_requests();
    let lines = shown(&pull(&world, &format!("{}/app:2", registry.address), None).await.unwrap());
    assert!(lines[1].ends_with("|Already exists"), "{lines:?}");
    assert_eq!(registry.requests_for(&sample.layers[0]), Vec::<String>::new());
}

#[tokio::test]
async fn of_an_index_the_nodes_platform_is_pulled_and_the_index_digest_kept() {
    let (world, registry, sample) = setup(Login::None, Faults::default()).await;
    let other = Sample::new("other", &[&[("x", "y")]]);
    let architecture = super::super::Platform::host().architecture;
    let entry = |manifest: &[u8], architecture: &str| {
        json!({"mediaType": "m", "digest": Digest::of(manifest), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        entry(&other.manifest, "s390x"), entry(&sample.manifest, &architecture)]}))
    .unwrap();
    registry.add("multi", "other", &other);
    registry.add("multi", "host", &sample);
    registry.add_manifest("multi", "1", &index);
    let reference = format!("{}/multi:1", registry.address);
    pull(&world, &reference, None).await.unwrap();
    let image = world.images.get(&reference).unwrap();
    assert_eq!(
        (image.id, image.digests),
        (sample.id(), vec![format!("{}/multi@{}", registry.address, Digest::of(&index))])
    );

    let pinned = format!("{reference}@{}", Digest::of(&index));
    registry.forget_requests();
    assert!(world.images.resolve(&pinned, PullPolicy::Always, None).await.is_ok());
    assert_eq!(registry.requests(), 0, "a digest that is here needs no registry");

    let none = world.images.pull(&reference, Some("linux/riscv64"), None).await.map(drop).unwrap_err();
    assert!(none.to_string().starts_with("no matching manifest for linux/riscv64 in the manifest list"), "{none}");

    let found = world.images.distribution(&reference, None).await.unwrap();
    assert_eq!((found.digest, found.size), (Digest::of(&index).to_string(), index.len() as u64));
    assert_eq!(found.media_type, OCI_INDEX);
    assert_eq!(found.platforms.len(), 2);
}

#[tokio::test]
async fn what_is_missing_is_named_in_dockers_words() {
    let (world, registry, _) = setup(Login::None, Faults::default()).await;
    let reference = format!("{}/nosuch:2", registry.address);
    let error = pull(&world, &reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::NoManifest(_)));
    assert_eq!(error.to_string(), format!("manifest for {reference} not found: manifest unknown: manifest unknown"));
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let world = world().await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = pull(&world, &format!("{gone}/app:1"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry(_)));
    assert_eq!(error.to_string(), format!("Get \"http://{gone}/v2/\": Connection refused (os error 111)"));
}

#[tokio::test]
async fn credentials_open_what_is_closed_to_others() {
    for login in [Login::Basic, Login::Bearer] {
        let (world, registry, _) = setup(login, Faults::default()).await;
        let reference = format!("{}/app:1", registry.address);
        let anonymous = pull(&world, &reference, None).await.unwrap_err();
        assert!(matches!(anonymous, ImageError::AccessDenied(_) | ImageError::Unauthorized(_)), "{anonymous}");
        let wrong = auth(r#"{"username":"user","password":"guess"}"#);
        let refused = pull(&world, &reference, Some(&wrong)).await.unwrap_err();
        assert!(matches!(refused, ImageError::Unauthorized(_)), "{refused}");
        let right = auth(r#"{"username":"user","password":"secret"}"#);
        pull(&world, &reference, Some(&right)).await.unwrap();
    }
    let (world, registry, _) = setup(Login::Bearer, Faults::default()).await;
    let identity = auth(r#"{"username":"user","identitytoken":"refresh"}"#);
    pull(&world, &format!("{}/app:1", registry.address), Some(&identity)).await.unwrap();
}

#[tokio::test]
async fn a_closed_repository_is_denied_in_dockers_words() {
    let (world, registry, _) = setup(Login::Basic, Faults::default()).await;
    let name = format!("{}/app", registry.address);
    assert_eq!(
        pull(&world, &format!("{name}:1"), None).await.unwrap_err().to_string(),
        format!(
            "pull access denied for {name}, repository does not exist or may require 'docker login': denied: requested \
             access to the resource is denied"
        )
    );
}

#[tokio::test]
async fn a_login_is_checked_with_the_registry() {
    for login in [Login::Basic, Login::Bearer] {
        let (world, registry, _) = setup(login, Faults::default()).await;
        assert_eq!(world.images.login(&registry.address, "user", "secret").await.unwrap(), "Login Succeeded");
        let refused = world.images.login(&registry.address, "user", "guess").await.unwrap_err();
        assert!(matches!(refused, ImageError::Unauthorized(_)), "{refused}");
    }
}

#[tokio::test]
async fn what_is_here_is_used_when_the_registry_is_gone() {
    let (world, registry, sample) = setup(Login::None, Faults::default()).await;
    let reference = format!("{}/app:1", registry.address);
    let used = world.images.resolve(&reference, PullPolicy::IfNotPresent, None).await.unwrap();
    assert_eq!(used.id, sample.id());
    drop(registry);
    assert_eq!(world.images.resolve(&reference, PullPolicy::Always, None).await.unwrap().id, sample.id());
    let other = world.images.resolve(&format!("{reference}x"), PullPolicy::Always, None).await;
    assert!(matches!(other, Err(ImageError::Registry(_))));
}

#[test]
fn a_registry_is_spoken_to_without_tls_when_it_is_named_or_its_address_is_in_a_named_subnet() {
    let registries = super::Registries::new(vec!["reg.lan:5000".into(), "10.1.0.0/16".into(), "fd00::/8".into()]);
    for plain in ["reg.lan:5000", "10.1.2.3:5000", "10.1.2.3", "[fd00::1]:5000", "127.0.0.1:1", "localhost:1"] {
        assert!(registries.is_plain(plain), "{plain}");
    }
    for secure in ["reg.lan", "reg.lan:5001", "10.2.0.1:5000", "[fe80::1]:5000", "10.1.2.3.example:5000"] {
        assert!(!registries.is_plain(secure), "{secure}");
    }
}
