//! Compiles every `wire/*.proto` into Rust, without protoc.
//!
//! A file of package `skep.NAME` becomes the module `skep_proto::wire::NAME`; adding a file needs no change here. The
//! descriptors are kept too, for tests that walk over every method.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Messages that hold secrets: their `Debug` is written by hand (`src/wire.rs`), so that no log can print them.
const SECRET_MESSAGES: [&str; 5] = [
    ".skep.objects.RootCa",
    ".skep.objects.JoinTokens",
    ".skep.objects.SecretData",
    ".skep.objects.RegistryAuth",
    ".skep.ca.IssueCertificateRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=wire");
    let mut files: Vec<PathBuf> = std::fs::read_dir("wire")?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();

    let mut compiler = protox::Compiler::new(["wire"])?;
    compiler.include_imports(true).open_files(&files)?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // Maps in the order of their keys: equal objects have equal bytes, on every replica.
        .btree_map(".")
        .bytes(".")
        .skip_debug(SECRET_MESSAGES)
        .include_file("wire.rs")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
