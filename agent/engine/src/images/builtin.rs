//! The image `skep/whoami`, made on the node itself from the static shim, so that a cluster without a registry has
//! something to run.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_proto::model::engine::ImageConfig;
use skep_proto::model::service::Protocol;

use super::digest::{Digest, Hasher};
use super::document::{Descriptor, NewHistory, NewImage, NewRootfs, OCI_LAYER, RawConfig};
use super::error::{ImageError, blocking};
use super::install::Arrived;
use super::platform::Platform;
use super::reference::{DEFAULT_REGISTRY, Reference};
use super::{Images, lease::Lease};

const NAMESPACE: &str = "skep/";
const WHOAMI: &str = "skep/whoami:latest";
/// The same program gives the same image on every node and at every start, so its time is fixed.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The reference names an image that is built in, and that no registry has.
pub fn is_builtin(reference: &Reference) -> bool {
    reference.registry() == DEFAULT_REGISTRY && reference.repository().starts_with(NAMESPACE)
}

/// The local name that a reference to a built-in image means: its digest is another on each build, so it does not count.
pub fn local_name(reference: &Reference) -> String {
    let tag = reference.tag().unwrap_or("latest");
    reference.with_tag(tag).to_string()
}

impl Images {
    /// Makes the image unless the one that is here has this very program. A program that is missing is logged: the node
    /// works without the image.
    pub(super) async fn ensure_builtin(&self, program: PathBuf) -> Result<(), ImageError> {
        let layer = {
            let program = program.clone();
            blocking(move || {
                let mut hasher = Hasher::default();
                write_layer(&program, &mut hasher).map_err(|e| ImageError::io("read", &program, e))?;
                Ok(hasher.finish())
            })
            .await
        };
        let diff_id = match layer {
            Ok(diff_id) => diff_id,
            Err(error) => {
                tracing::warn!(program = %program.display(), %error, "no image {WHOAMI}: its program cannot be read");
                return Ok(());
            }
        };
        let state = self.0.catalog.state();
        if state.find(WHOAMI).is_ok_and(|known| known.document.layers == [diff_id]) {
            return Ok(());
        }
        let lease = Arc::new(self.0.pins.lease());
        let images = self.clone();
        let (layer_lease, name) = (lease.clone(), WHOAMI.parse()?);
        let arrived = blocking(move || images.write_builtin(&program, diff_id, &layer_lease)).await?;
        self.install(&lease, arrived, vec![name]).await?;
        Ok(())
    }

    fn write_builtin(&self, program: &Path, diff_id: Digest, lease: &Lease) -> Result<Arrived, ImageError> {
        let mut spool = self.0.content.spool()?;
        write_layer(program, &mut spool).map_err(|e| ImageError::io("copy", program, e))?;
        let (blob, size) = spool.commit(lease)?;
        let config = ImageConfig {
            entrypoint: vec!["/whoami".into(), "whoami".into()],
            exposed: vec![(Protocol::Tcp, 80)],
            ..ImageConfig::default()
        };
        let platform = Platform::host();
        let document = NewImage {
            created: CREATED,
            architecture: &platform.architecture,
            os: &platform.os,
            config: RawConfig::from(&config),
            rootfs: NewRootfs { r#type: "layers", diff_ids: &[diff_id] },
            history: [NewHistory { created: CREATED, comment: "built into skep" }],
        };
        let document = serde_json::to_string(&document).expect("a configuration is JSON");
        let layers = vec![Descriptor::new(OCI_LAYER, blob, size)];
        let (id, manifest) = self.write_manifest(lease, document.as_bytes(), layers)?;
        Ok(Arrived { id, manifest, index: None, blobs: vec![blob], document })
    }
}

/// Writes the layer: the program, and the mount points that a read-only root must have.
fn write_layer(program: &Path, target: impl Write) -> io::Result<()> {
    let mut file = File::open(program)?;
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(128 * 1024, target));
    for folder in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        own(&mut header);
        archive.append_data(&mut header, folder, io::empty())?;
    }
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(file.metadata()?.len());
    own(&mut header);
    archive.append_data(&mut header, "whoami", &mut file)?;
    // Health checks given as a line go through a shell: the program stands in for one.
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    own(&mut header);
    archive.append_link(&mut header, "bin/sh", "/whoami")?;
    archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.flush()
}

/// Owned by root, of no time.
fn own(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
}
