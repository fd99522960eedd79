//! A stack of 500 services: time to read its file, and to plan it against a cluster in which each differs; memory at the
//! most. Prints figures; `cargo bench -p skep-api --bench plan [-- SERVICES]`.

#![allow(clippy::unwrap_used)] // test code

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use skep_api::manifest::plan::{How, Observed, Prune, ServiceSeen, Wanted, plan};
use skep_api::manifest::{Disk, Input, Options, read};

struct NoDisk;

impl Disk for NoDisk {
    fn read(&self, _: &Path, _: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn file(services: usize, image: &str) -> Input {
    let mut text = String::from("services:\n");
    for n in 0..services {
        write!(
            text,
            "  s{n}:\n    image: {image}\n    command: [run, --number, '{n}']\n    environment: {{A: '1', B: '${{B:-2}}', C: x, D: y, E: z}}\n\
             \x20   ports: ['{}:80']\n    volumes: ['/srv/{n}:/data', '/tmp:/tmp:ro']\n    healthcheck: {{test: [CMD, ok], interval: 5s}}\n\
             \x20   deploy: {{replicas: 3, resources: {{limits: {{cpus: '0.5', memory: 64M}}}}, update_config: {{order: start-first}}}}\n",
            10_000 + n
        )
        .unwrap();
    }
    Input { name: "stack.yml".into(), text, directory: PathBuf::from("/") }
}

fn main() {
    let services: usize = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(500);
    let options = Options { stack: Some("big".into()), directory: PathBuf::from("/"), ..Options::default() };
    let wanted = |image: &str| {
        let input = [file(services, image)];
        let start = Instant::now();
        let stack = read(&input, &options, &NoDisk).unwrap_or_else(|p| panic!("{p}"));
        let wanted = Wanted::from(&stack);
        println!("read {services} services ({} KiB): {:?}", input[0].text.len() / 1024, start.elapsed());
        wanted
    };
    let (old, new) = (wanted("x:1"), wanted("x:2"));
    let seen = |spec: &serde_json::Value| ServiceSeen { id: "id".into(), version: 1, spec: spec.clone() };
    let observed = Observed {
        services: old.services.iter().map(|(name, spec)| (name.clone(), seen(spec))).collect(),
        last: Some(old.clone()),
        ..Observed::default()
    };
    for (what, wanted) in [("none differs", &old), ("each differs", &new)] {
        let start = Instant::now();
        let plan = plan(wanted, &observed, How { force: false, prune: Prune::Owned });
        println!("plan, {what}: {:?}, {} steps", start.elapsed(), plan.steps.len());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("memory, the most: {}", peak.trim_start_matches("VmHWM:").trim());
}
