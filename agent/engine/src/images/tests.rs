use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use skep_proto::model::engine::ImageConfig;

use super::fixture::{Archive, Sample, World, tar_of, upload, world};
use super::*;

fn sample() -> Sample {
    Sample::new("run", &[&[("etc/a", "lower"), ("etc/b", "b")], &[("etc/a", "upper")]])
}

async fn load(world: &World, sample: &Sample, tags: &[&str]) {
    world.images.load(upload(sample.docker_archive(tags))).await.unwrap();
}

fn used_by(sample: &Sample, running: bool) -> [ImageUse; 1] {
    [ImageUse { image: sample.id(), container: "c0ffee".repeat(11)[..64].to_owned(), running }]
}

#[tokio::test]
async fn a_loaded_image_is_listed_found_and_used() {
    let world = world().await;
    let sample = sample();
    let lines = world.images.load(upload(sample.docker_archive(&["app:1", "127.0.0.1:5000/app:2"]))).await.unwrap();
    assert_eq!(lines, ["Loaded image: app:1", "Loaded image: 127.0.0.1:5000/app:2"]);
    let image = Image {
        id: sample.id(),
        tags: vec!["127.0.0.1:5000/app:2".into(), "app:1".into()],
        digests: vec![],
        created: "2026-01-02T03:04:05Z".into(),
        size: 11,
        architecture: Platform::host().architecture,
        os: "linux".into(),
        author: String::new(),
        layers: sample.layers.iter().map(|layer| Digest::of(layer).to_string()).collect(),
        config: ImageConfig { command: vec!["run".into()], env: vec!["A=b".into()], ..ImageConfig::default() },
    };
    assert_eq!(world.images.list(), std::slice::from_ref(&image));
    for reference in ["app:1", "docker.io/library/app:1", &sample.id(), &sample.id()[7..19]] {
        assert_eq!(world.images.get(reference).unwrap(), image, "{reference}");
    }
    assert!(matches!(world.images.get("app"), Err(ImageError::NotFound(name)) if name == "app"));

    let used = world.images.resolve("app:1", PullPolicy::IfNotPresent, None).await.unwrap();
    assert_eq!((&used.id, &used.config), (&image.id, &image.config));
    let read = |layer: usize| fs::read_to_string(used.layers[layer].join("etc/a")).unwrap();
    assert_eq!((read(0), read(1)), ("lower".into(), "upper".into()));
}

#[tokio::test]
async fn images_outlive_a_restart() {
    let world = world().await;
    let sample = sample();
    load(&world, &sample, &["app:1"]).await;
    let before = world.images.list();
    let world = world.reopen().await;
    assert_eq!(world.images.list(), before);
    assert!(world.images.resolve("app:1", PullPolicy::Never, None).await.is_ok());
}

#[tokio::test]
async fn every_form_of_archive_gives_the_same_image() {
    let sample = sample();
    let layout = sample.oci_layout("docker.io/library/app:1");
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &layout).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&layout[..], 1).unwrap();
    for archive in [sample.docker_archive(&["app:1"]), layout, gzip, zstd] {
        let world = world().await;
        assert_eq!(world.images.load(upload(archive)).await.unwrap(), ["Loaded image: app:1"]);
        assert_eq!(world.images.get("app:1").unwrap().id, sample.id());
    }
}

#[tokio::test]
async fn an_archive_without_names_is_told_by_its_id() {
    let world = world().await;
    let sample = sample();
    let lines = world.images.load(upload(sample.docker_archive(&[]))).await.unwrap();
    assert_eq!(lines, [format!("Loaded image ID: {}", sample.id())]);
}

#[tokio::test]
async fn what_a_load_does_not_need_is_not_kept() {
    let world = world().await;
    load(&world, &sample(), &["app:1"]).await;
    // Two layers, configuration, manifest.
    assert_eq!((world.count("content/blobs/sha256"), world.count("content/ingest")), (4, 0));
    assert_eq!((world.count("layers/sha256"), world.count("layers/tmp")), (2, 0));
}

#[tokio::test]
async fn archives_that_are_none_or_are_forged_are_refused_and_leave_nothing() {
    let sample = sample();
    let forged = {
        let mut other = Sample::new("run", &[&[("etc/a", "lower"), ("etc/b", "b")], &[("etc/a", "forged")]]);
        other.config.clone_from(&sample.config);
        other.docker_archive(&["app:1"])
    };
    let short = {
        let mut short = Sample::new("run", &[&[("etc/a", "lower")]]);
        short.config.clone_from(&sample.config);
        short.docker_archive(&["app:1"])
    };
    let escaping = {
        let mut archive = Archive::new();
        archive.file("manifest.json", br#"[{"Config":"../../etc/passwd","RepoTags":null,"Layers":[]}]"#);
        archive.finish()
    };
    let looping = {
        let mut archive = Archive::new();
        archive.symlink("manifest.json", "manifest.json");
        archive.finish()
    };
    let whole = sample.docker_archive(&["app:1"]);
    let cases: [(&str, Vec<u8>); 8] = [
        ("neither manifest.json nor index.json", tar_of(&[("etc/passwd", "root")])),
        ("neither manifest.json nor index.json", Vec::new()),
        ("verification failed", forged),
        ("length mismatch", short),
        ("leads out", escaping),
        ("leads nowhere", looping),
        ("truncated", whole[..whole.len() / 3].to_vec()),
        ("this is no tar archive", vec![b'x'; 5000]),
    ];
    for (reason, archive) in cases {
        let world = world().await;
        let error = world.images.load(upload(archive)).await.unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(reason), "{reason}: {error}: {source}");
        assert_eq!(world.images.list(), []);
        // The other layer may be being unpacked still, under the lease.
        tokio::time::timeout(Duration::from_secs(10), async {
            while (world.count("content/blobs/sha256"), world.count("layers/sha256")) != (0, 0) {
                world.images.collect(CollectPolicy::Dangling).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect(reason);
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_an_error() {
    let world = world().await;
    let whole = sample().docker_archive(&["app:1"]);
    let start = upload(whole[..2000].to_vec());
    let broken = start.chain(futures_util::stream::iter([Err(std::io::Error::other("the client left"))])).boxed();
    assert!(world.images.load(broken).await.is_err());
    assert_eq!(world.images.list(), []);
}

#[tokio::test]
async fn an_import_is_an_image_of_one_layer_with_its_changes() {
    let world = world().await;
    let import = Import {
        reference: Some("imp:1".into()),
        changes: vec!["CMD [\"sh\"]".into(), "ENV A=1".into()],
        ..Import::default()
    };
    let id = world.images.import(upload(tar_of(&[("bin/sh", "#!")])), import).await.unwrap();
    let image = world.images.get("imp:1").unwrap();
    assert_eq!((&image.id, image.created.as_str(), image.size), (&id, "2023-11-14T22:13:20Z", 2));
    assert_eq!(image.config.command, ["sh"]);
    let bad = Import { changes: vec!["RUN x".into()], ..Import::default() };
    assert!(matches!(world.images.import(upload(tar_of(&[])), bad).await, Err(ImageError::Invalid(_))));
}

#[tokio::test]
async fn a_tag_moves_and_the_image_it_left_is_dangling() {
    let world = world().await;
    let (first, second) = (sample(), Sample::new("other", &[&[("x", "y")]]));
    load(&world, &first, &["app:1"]).await;
    load(&world, &second, &["app:2"]).await;
    world.images.tag("app:2", "app:1").await.unwrap();
    assert_eq!(world.images.get("app:1").unwrap().id, second.id());
    assert_eq!(world.images.get(&first.id()).unwrap().tags, Vec::<String>::new());
    assert!(matches!(world.images.tag("nosuch", "x:1").await, Err(ImageError::NotFound(_))));
    assert!(matches!(world.images.tag("app:2", "X y").await, Err(ImageError::InvalidReference(_))));

    let collected = world.images.collect(CollectPolicy::Dangling).await.unwrap();
    assert_eq!(collected.deleted, [first.id()]);
    assert!(collected.reclaimed > 0);
    assert_eq!(world.images.list().len(), 1);
    assert_eq!(world.count("layers/sha256"), 1);
}

#[tokio::test]
async fn the_last_name_takes_the_image_with_it() {
    let world = world().await;
    let sample = sample();
    load(&world, &sample, &["app:1", "app:2"]).await;
    let removed = world.images.remove("app:1", false, &[]).await.unwrap();
    assert_eq!(removed, (vec!["app:1".into()], vec![]));
    let removed = world.images.remove("app:2", false, &[]).await.unwrap();
    assert_eq!(removed, (vec!["app:2".into()], vec![sample.id()]));
    assert_eq!((world.count("content/blobs/sha256"), world.count("layers/sha256")), (0, 0));
    assert!(matches!(world.images.remove("app:2", true, &[]).await, Err(ImageError::NotFound(_))));
}

#[tokio::test]
async fn an_image_in_use_is_refused_in_dockers_words() {
    let world = world().await;
    let sample = sample();
    load(&world, &sample, &["app:1"]).await;
    let id = sample.id();
    let (short, container) = (&id[7..19], "c0ffeec0ffee");
    let refuse = async |reference: &str, force, running| {
        world.images.remove(reference, force, &used_by(&sample, running)).await.unwrap_err().to_string()
    };
    assert_eq!(
        refuse("app:1", false, false).await,
        format!(
            "conflict: unable to remove repository reference \"app:1\" (must force) - container {container} is using its \
             referenced image {short}"
        )
    );
    assert_eq!(
        refuse(&id, false, false).await,
        format!(
            "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {container}"
        )
    );
    assert_eq!(
        refuse(&id, true, true).await,
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container {container}"
        )
    );
    load(&world, &sample, &["other:1"]).await;
    assert_eq!(
        world.images.remove(&id, false, &[]).await.unwrap_err().to_string(),
        format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories")
    );
    let removed = world.images.remove("app:1", false, &used_by(&sample, true)).await.unwrap();
    assert_eq!(removed, (vec!["app:1".into()], vec![]), "another name is left");
}

#[tokio::test]
async fn an_image_removed_by_force_serves_its_container_to_the_end() {
    let world = world().await;
    let sample = sample();
    load(&world, &sample, &["app:1"]).await;
    let used = world.images.resolve("app:1", PullPolicy::Never, None).await.unwrap();
    let removed = world.images.remove("app:1", true, &used_by(&sample, false)).await.unwrap();
    assert_eq!(removed.1, [sample.id()]);
    assert_eq!(world.images.list(), []);
    assert!(used.layers.iter().all(|layer| layer.is_dir()));

    // The container is still there after a restart.
    drop(used);
    let world = world.reopen().await;
    let held = world.images.hold(&sample.id()).unwrap();
    world.images.collect(CollectPolicy::Unused).await.unwrap();
    assert!(held.layers.iter().all(|layer| layer.is_dir()));
    let layers = held.layers.clone();
    drop(held);
    world.images.collect(CollectPolicy::Dangling).await.unwrap();
    assert!(layers.iter().all(|layer| !layer.exists()));
    assert!(world.images.hold(&sample.id()).is_err());
}

#[tokio::test]
async fn only_what_was_long_unused_is_collected_by_age() {
    let world = world().await;
    let (old, fresh) = (sample(), Sample::new("fresh", &[&[("x", "y")]]));
    load(&world, &old, &["old:1"]).await;
    load(&world, &fresh, &["fresh:1"]).await;
    let day = Duration::from_secs(24 * 3600);
    world.now.fetch_add(u64::try_from(day.as_millis()).unwrap(), Ordering::SeqCst);
    drop(world.images.resolve("fresh:1", PullPolicy::Never, None).await.unwrap());
    let collected = world.images.collect(CollectPolicy::UnusedFor(day)).await.unwrap();
    assert_eq!((collected.untagged, collected.deleted), (vec!["old:1".to_owned()], vec![old.id()]));
}

#[tokio::test]
async fn a_prefix_of_several_ids_is_refused() {
    let world = world().await;
    // Ids begin with one of 16 digits, so 17 images share one.
    for i in 0..17 {
        load(&world, &Sample::new(&format!("c{i}"), &[&[("x", "y")]]), &[]).await;
    }
    let mut digits: Vec<String> = world.images.list().iter().map(|image| image.id[7..8].to_owned()).collect();
    digits.sort();
    let shared = digits.windows(2).find(|pair| pair[0] == pair[1]).unwrap()[0].clone();
    assert!(matches!(world.images.get(&shared), Err(ImageError::AmbiguousId(_))));
}
