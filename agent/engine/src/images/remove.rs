//! `docker rmi`: which names and images go, by Docker's rules (Engine API, "Remove an image").

use super::Images;
use super::builtin::{is_builtin, local_name};
use super::catalog::{ImageRecord, Known, State};
use super::digest::Digest;
use super::error::{ImageError, blocking};
use super::reference::Reference;
use std::sync::Arc;

/// A container that uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// Id of the image, `sha256:…`.
    pub image: String,
    /// Id of the container.
    pub container: String,
    /// It runs, so that not even force removes the image.
    pub running: bool,
}

/// What goes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Removal {
    untagged: Vec<Reference>,
    image: Option<Digest>,
}

impl Images {
    /// Removes a name, and the image with its last one. `usage` holds the containers of the node. Gives what was untagged
    /// (familiar names) and what was deleted (ids), in Docker's order.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InUse`] in Docker's words.
    pub async fn remove(
        &self,
        reference: &str,
        force: bool,
        usage: &[ImageUse],
    ) -> Result<(Vec<String>, Vec<String>), ImageError> {
        let (images, reference, usage) = (self.clone(), reference.to_owned(), usage.to_vec());
        let removal = blocking(move || {
            let inner = &images.0;
            // Under the pins' lock, so that nobody begins to use the image between the look and the removal.
            inner.pins.while_locked(|is_held| {
                inner.catalog.update(|state| {
                    let removal = plan(state, &reference, force, &usage)?;
                    apply(state, &removal, is_held)?;
                    Ok(removal)
                })
            })
        })
        .await?;
        if removal.image.is_some() {
            self.sweep().await?;
        }
        let untagged = removal.untagged.iter().map(Reference::familiar).collect();
        Ok((untagged, removal.image.iter().map(Digest::to_string).collect()))
    }
}

/// Takes names and image out of the state. An image that is held stays, hidden, until its last user goes.
fn apply(state: &mut State, removal: &Removal, is_held: &dyn Fn(&Digest) -> bool) -> Result<(), ImageError> {
    for name in &removal.untagged {
        state.names.remove(name);
    }
    let Some(id) = removal.image else { return Ok(()) };
    match state.images.remove(&id) {
        Some(known) if is_held(&id) => {
            let record = ImageRecord { removed: true, ..known.record.clone() };
            state.images.insert(id, Arc::new(Known::new(record)?));
        }
        Some(_) | None => {}
    }
    Ok(())
}

fn plan(state: &State, text: &str, force: bool, usage: &[ImageUse]) -> Result<Removal, ImageError> {
    let id = state.find(text)?.record.id;
    let names: Vec<&Reference> = state.names_of(id).collect();
    let users = usage.iter().filter(|user| user.image == id.to_string());
    let running = users.clone().find(|user| user.running);
    let stopped = users.clone().find(|user| !user.running);
    let by_id = text.parse::<Reference>().ok().and_then(|reference| state.lookup(&reference)).is_none();

    if by_id {
        if !force && !is_single(&names) {
            return Err(delete_conflict(id, "must be forced", "image is referenced in multiple repositories"));
        }
        refuse_used(id, force, running, stopped)?;
        return Ok(Removal { untagged: names.into_iter().cloned().collect(), image: Some(id) });
    }
    let reference: Reference = text.parse()?;
    if !force
        && is_single(&names)
        && let Some(user) = users.clone().next()
    {
        return Err(ImageError::InUse(format!(
            "conflict: unable to remove repository reference {text:?} (must force) - container {} is using its referenced \
             image {}",
            short(&user.container),
            id.short()
        )));
    }
    let removed = match (reference.digest(), is_builtin(&reference)) {
        (_, true) => local_name(&reference).parse()?,
        (Some(digest), false) => reference.with_digest(digest),
        (None, false) => reference,
    };
    let mut untagged = vec![removed.clone()];
    let same_repository = |name: &&&Reference| name.name() == removed.name() && **name != &removed;
    let tag_left = names.iter().filter(same_repository).any(|name| name.digest().is_none());
    if removed.digest().is_none() && !tag_left {
        // A digest alone was only ever the shadow of a tag.
        untagged.extend(names.iter().filter(same_repository).map(|name| (*name).clone()));
    }
    let names_left = names.iter().any(|name| !untagged.contains(name));
    // Without names an image that is used stays as it is, by its id.
    let used = running.is_some() || (stopped.is_some() && !force);
    let image = (!names_left && !used).then_some(id);
    Ok(Removal { untagged, image })
}

/// One tag at most, or all names in one repository with digests only beside the tag.
fn is_single(names: &[&Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    tags <= 1 && names.windows(2).all(|pair| pair[0].name() == pair[1].name())
}

fn refuse_used(
    id: Digest,
    force: bool,
    running: Option<&ImageUse>,
    stopped: Option<&ImageUse>,
) -> Result<(), ImageError> {
    if let Some(user) = running {
        let why = format!("image is being used by running container {}", short(&user.container));
        return Err(delete_conflict(id, "cannot be forced", &why));
    }
    if let (Some(user), false) = (stopped, force) {
        let why = format!("image is being used by stopped container {}", short(&user.container));
        return Err(delete_conflict(id, "must be forced", &why));
    }
    Ok(())
}

fn delete_conflict(id: Digest, force: &str, why: &str) -> ImageError {
    ImageError::InUse(format!("conflict: unable to delete {} ({force}) - {why}", id.short()))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
