//! Whether what runs on a lab answers: by its published ports on every node, and inside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{Lab, eventually};

/// How long one answer may take.
const PATIENCE_OF_ONE: Duration = Duration::from_secs(2);

/// Waits until nothing of a stack is left. Volumes stay, as Docker's do: they hold data.
///
/// # Panics
/// When something is.
pub fn no_trace(lab: &Lab, stack: &str) {
    let label = format!("label=com.docker.stack.namespace={stack}");
    eventually(&format!("nothing of {stack} is left"), || {
        for kind in ["service", "network", "secret", "config"] {
            let listed = lab.docker("m1", &[kind, "ls", "--format", "{{.Name}}", "--filter", &label])?;
            ensure!(listed.is_empty(), "{kind}: {listed}");
        }
        for node in lab.nodes() {
            let left = lab.docker(&node, &["ps", "-a", "--format", "{{.Names}} {{.Status}}", "--filter", &label])?;
            ensure!(left.is_empty(), "{node}: {left}");
        }
        Ok(())
    });
}

/// Waits until a page has a text, by every node.
///
/// # Panics
/// When it has not.
pub fn http_shows(lab: &Lab, port: u16, path: &str, text: &str) {
    for node in lab.nodes() {
        eventually(&format!("{node}:{port}{path} shows {text:?}"), || {
            let page = lab.http(&node, port, path)?;
            ensure!(page.contains(text), "{page}");
            Ok(())
        });
    }
}

/// Waits until a server says this to those bytes, by every node.
///
/// # Panics
/// When it does not.
pub fn tcp_says(lab: &Lab, port: u16, asked: &[u8], expected: &[u8]) {
    for node in lab.nodes() {
        eventually(&format!("{node}:{port} says {:?}", String::from_utf8_lossy(expected)), || {
            let mut stream = TcpStream::connect((lab.address(&node), port))?;
            stream.set_read_timeout(Some(PATIENCE_OF_ONE))?;
            stream.write_all(asked)?;
            let mut said = vec![0; 512];
            let mut length = 0;
            while !said[..length].windows(expected.len()).any(|part| part == expected) {
                let more = stream.read(&mut said[length..])?;
                ensure!(more > 0, "it says {:?}", String::from_utf8_lossy(&said[..length]));
                length += more;
            }
            Ok(())
        });
    }
}

/// Runs a command in the container of one of a service's tasks, by a manager that may not have it.
///
/// # Errors
/// When no such task runs, and what the command says.
pub fn exec(lab: &Lab, service: &str, index: usize, command: &[&str]) -> anyhow::Result<String> {
    let tasks = lab.running("m1", service);
    let task = tasks.get(index).and_then(|line| line.split(' ').next()).context("no task runs")?;
    let format = "{{.Status.ContainerStatus.ContainerID}}";
    let container = lab.docker("m1", &["inspect", "--format", format, task])?;
    lab.docker("m1", &[&["exec", container.trim()][..], command].concat())
}

/// Waits until such a command shows a text.
///
/// # Panics
/// When it does not.
pub fn exec_shows(lab: &Lab, service: &str, index: usize, command: &[&str], text: &str) {
    eventually(&format!("{command:?} in {service} shows {text:?}"), || {
        let said = exec(lab, service, index, command)?;
        ensure!(said.contains(text), "{said}");
        Ok(())
    });
}
