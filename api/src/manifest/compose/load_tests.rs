use std::path::PathBuf;

use crate::manifest::fake::{self, FakeDisk};
use crate::manifest::reader::Options;
use crate::manifest::stack::Stack;

fn read(files: &[(&str, &str)], disk: &[(&str, &str)], options: &Options) -> Result<Stack, String> {
    fake::read(files, options, &FakeDisk::with(disk)).map_err(|p| p.to_string())
}

fn env(stack: &Stack, service: usize) -> Vec<&str> {
    stack.parts.services[service].spec.task.containers[0].env.iter().map(String::as_str).collect()
}

#[test]
fn later_files_win_and_lists_follow_their_rules() {
    let base = "services:\n  web:\n    image: a\n    command: [x]\n    environment: [A=1, B=2]\n    ports: ['80:80', '81:81']\n\
                \x20   volumes: ['/a:/data', '/b:/b']\n    cap_add: [A]\n    labels: {k: v}\n    networks: [one]\n    healthcheck: {test: [CMD, a], retries: 2}\n\
                networks: {one: , two: }\n";
    let over = "services:\n  web:\n    image: b\n    command: [y, z]\n    environment: {B: 3, C: 4}\n    ports: ['80:80', '82:82']\n\
                \x20   volumes: ['/c:/data:ro']\n    cap_add: [A, B]\n    labels: [l=w]\n    networks: {two: {aliases: [t]}}\n    healthcheck: {test: [CMD, b]}\n";
    let stack = read(&[("a.yml", base), ("b.yml", over)], &[], &fake::options()).unwrap();
    let spec = &stack.parts.services[0].spec;
    let container = &spec.task.containers[0];
    assert_eq!((container.image.as_str(), container.args.clone()), ("b", vec!["y".to_owned(), "z".to_owned()]));
    assert_eq!(env(&stack, 0), ["A=1", "B=3", "C=4"]);
    let ports: Vec<_> = spec.endpoint.as_ref().unwrap().ports.iter().filter_map(|p| p.published).collect();
    assert_eq!(ports, [80, 81, 82]);
    let mounts: Vec<_> = container.mounts.iter().map(|m| (m.source.as_str(), m.read_only)).collect();
    assert_eq!(mounts, [("/c", true), ("/b", false)]);
    assert_eq!(container.cap_add, ["CAP_A", "CAP_B"]);
    assert_eq!((container.labels["k"].as_str(), container.labels["l"].as_str()), ("v", "w"));
    assert_eq!(spec.task.networks.len(), 2);
    let check = container.healthcheck.as_ref().unwrap();
    assert_eq!((check.test.clone(), check.retries), (vec!["CMD".to_owned(), "b".to_owned()], 2));
}

#[test]
fn reset_takes_away_and_override_replaces() {
    let base = "services: {web: {image: a, ports: ['80:80'], environment: {A: 1}, user: u}, old: {image: x}}\n";
    let over =
        "services: {web: {ports: !override ['81:80'], environment: !reset {}, user: !reset null}, old: !reset }\n";
    let stack = read(&[("a.yml", base), ("b.yml", over)], &[], &fake::options()).unwrap();
    assert_eq!(stack.parts.services.len(), 1);
    let spec = &stack.parts.services[0].spec;
    assert_eq!(spec.endpoint.as_ref().unwrap().ports.iter().map(|p| p.published).collect::<Vec<_>>(), [Some(81)]);
    assert!(env(&stack, 0).is_empty() && spec.task.containers[0].user.is_empty());
}

#[test]
fn extends_takes_from_this_and_other_files_with_their_paths() {
    let main = "services:\n  base: {image: a, environment: {A: 1, B: 1}, volumes: ['./x:/x']}\n  web:\n    extends: base\n    environment: {B: 2}\n\
                \x20 far:\n    extends: {service: worker, file: sub/common.yml}\n    environment: [C=3]\n";
    let common = "services:\n  worker:\n    extends: {service: root}\n    volumes: ['./d:/d']\n  root: {image: 'r:${TAG:-1}$$', environment: {R: 0}}\n";
    let stack = read(&[("c.yml", main)], &[("sub/common.yml", common)], &fake::options()).unwrap();
    assert_eq!(env(&stack, 1), ["A=1", "B=2"]);
    assert_eq!(stack.parts.services[1].spec.task.containers[0].mounts[0].source, "/project/x");
    let far = &stack.parts.services[2].spec.task.containers[0];
    assert_eq!((far.image.as_str(), far.mounts[0].source.as_str()), ("r:1$", "/project/sub/d"));
    assert_eq!(env(&stack, 2), ["C=3", "R=0"]);
}

#[test]
fn includes_bring_their_own_paths_and_variables() {
    let main = "include:\n  - sub/db.yml\n  - {path: [more.yml, more.over.yml], env_file: more.env}\nservices: {web: {image: w}}\n";
    let disk = [
        ("sub/db.yml", "services: {db: {image: 'db:${TAG}', volumes: ['./data:/data']}}\n"),
        ("sub/.env", "TAG=7\n"),
        ("more.yml", "services: {more: {image: 'm:${V}'}}\n"),
        ("more.over.yml", "services: {more: {user: u}}\n"),
        ("more.env", "V=2\n"),
    ];
    let stack = read(&[("c.yml", main)], &disk, &fake::options()).unwrap();
    let images: Vec<_> = stack.parts.services.iter().map(|s| s.spec.task.containers[0].image.as_str()).collect();
    assert_eq!(images, ["w", "db:7", "m:2"]);
    assert_eq!(stack.parts.services[1].spec.task.containers[0].mounts[0].source, "/project/sub/data");
    assert_eq!(stack.parts.services[2].spec.task.containers[0].user, "u");
}

#[test]
fn what_names_itself_or_cannot_be_read_is_a_problem_at_its_place() {
    for (main, because) in [
        ("include: [c.yml]\nservices: {a: {image: x}}\n", "c.yml:1:11: /project/c.yml includes itself"),
        ("include: [none.yml]\nservices: {a: {image: x}}\n", "c.yml:1:11: /project/none.yml cannot be read"),
        ("services: {a: {extends: b}, b: {extends: a}}\n", "extends itself"),
        ("services: {a: {extends: c}}\n", "there is no service c to extend"),
        ("include: [other.yml]\nservices: {a: {image: x}}\n", "a of services is in /project/other.yml:1 too"),
        ("services: {a: {image: x, command: [y]}, b: {image: }}\n", "the service b has no image"),
    ] {
        let disk = [("c.yml", main), ("other.yml", "services: {a: {image: y}}\n")];
        let error = read(&[("c.yml", main)], &disk, &fake::options()).unwrap_err();
        assert!(error.contains(because), "{main}: {error}");
    }
}

#[test]
fn includes_and_extends_that_multiply_are_bounded() {
    let mut disk: Vec<(String, String)> = Vec::new();
    for i in 0..40 {
        let next = format!("f{}.yml", i + 1);
        disk.push((
            format!("f{i}.yml"),
            format!("include: [{next}, {{path: {next}}}]\nservices: {{s{i}: {{image: x}}}}\n"),
        ));
    }
    disk.push(("f40.yml".into(), "services: {s: {image: x}}\n".into()));
    let disk: Vec<(&str, &str)> = disk.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert!(read(&[("f0.yml", disk[0].1)], &disk, &fake::options()).unwrap_err().contains("files are included"));

    let mut chain = String::from("services:\n  s0: {image: x}\n");
    for i in 1..2000 {
        chain.push_str(&format!("  s{i}: {{extends: s{}}}\n", i - 1));
    }
    assert!(read(&[("c.yml", &chain)], &[], &fake::options()).unwrap_err().contains("extend each other"));
}

#[test]
fn variables_come_from_the_caller_over_env_files() {
    let main = "services: {web: {image: 'x:${TAG}-${FROM}'}}\n";
    let mut options = fake::options();
    options.environment.insert("FROM".into(), "caller".into());
    let disk = [(".env", "TAG=1\nFROM=file\n"), ("other.env", "TAG=2\n")];
    let image = |options: &Options| {
        let stack = read(&[("c.yml", main)], &disk, options).unwrap();
        stack.parts.services[0].spec.task.containers[0].image.clone()
    };
    assert_eq!(image(&options), "x:1-caller");
    options.env_files = Some(vec![PathBuf::from("/project/other.env")]);
    assert_eq!(image(&options), "x:2-caller");
    options.env_files = Some(vec![PathBuf::from("/project/none.env")]);
    assert!(read(&[("c.yml", main)], &disk, &options).unwrap_err().contains("none.env: variables cannot be read"));
}

#[test]
fn services_of_other_profiles_are_left_out() {
    let main = "services: {web: {image: x}, debug: {image: y, profiles: [dev, test]}}\n";
    let names = |options: &Options| -> Vec<String> {
        read(&[("c.yml", main)], &[], options).unwrap().parts.services.into_iter().map(|s| s.key).collect()
    };
    let mut options = fake::options();
    assert_eq!(names(&options), ["web"]);
    options.profiles = vec!["test".into()];
    assert_eq!(names(&options), ["web", "debug"]);
    options.profiles = Vec::new();
    options.environment.insert("COMPOSE_PROFILES".into(), "a,dev".into());
    assert_eq!(names(&options), ["web", "debug"]);
}

#[test]
fn a_name_may_hold_variables_and_documents_follow_each_other() {
    let mut options = fake::options();
    options.stack = None;
    options.environment.insert("N".into(), "one".into());
    let stack =
        read(&[("c.yml", "name: ${N}\nservices: {a: {image: x}}\n---\nservices: {a: {user: u}}\n")], &[], &options)
            .unwrap();
    assert_eq!((stack.name.as_str(), stack.parts.services[0].spec.task.containers[0].user.as_str()), ("one", "u"));
    assert_eq!(read(&[("c.yml", "services: {a: {image: x}}\n")], &[], &options).unwrap().name, "project");
}
