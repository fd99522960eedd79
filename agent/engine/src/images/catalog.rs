//! The images of this node and their names: in memory for reading, in redb for keeping.
//!
//! Every change is one transaction. Readers see the state before or after it, never between, and never wait for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use skep_proto::model::Timestamp;
use skep_proto::model::engine::Image;

use super::digest::Digest;
use super::document::ImageDocument;
use super::error::{ImageError, StorageError};
use super::reference::Reference;

/// Image by id: JSON of `ImageRecord`.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
/// Full reference to id.
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
/// Format number of both tables, so that a later release knows what it reads.
const FORMAT: TableDefinition<'_, (), u64> = TableDefinition::new("format");
const CURRENT_FORMAT: u64 = 1;
/// The database holds a few kilobytes per image, and reads come from memory.
const CACHE_BYTES: usize = 1 << 20;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of its configuration, which is its id.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// The index that the manifest was chosen from.
    pub index: Option<Digest>,
    /// Its layers' blobs, lowest first.
    pub blobs: Vec<Digest>,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// Its configuration, as JSON.
    pub document: String,
    /// Milliseconds since the Unix epoch of its last use or arrival, to about an hour.
    pub used_at: u64,
    /// Removed by force while a container used it: shown to nobody, collected with its last user.
    pub removed: bool,
}

/// An image with its configuration read.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// As kept.
    pub record: ImageRecord,
    /// Its configuration.
    pub document: ImageDocument,
}

impl Known {
    /// Reads the record's configuration.
    pub fn new(record: ImageRecord) -> Result<Self, ImageError> {
        let document = ImageDocument::parse(record.document.as_bytes())?;
        Ok(Self { record, document })
    }

    /// Every digest that the image needs: id, manifest, index, blobs, layers.
    pub fn content(&self) -> impl Iterator<Item = Digest> {
        let record = &self.record;
        let documents = [Some(record.id), Some(record.manifest), record.index].into_iter().flatten();
        documents.chain(record.blobs.iter().copied()).chain(self.document.layers.iter().copied())
    }
}

/// All images and names at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Images by id.
    pub images: BTreeMap<Digest, Arc<Known>>,
    /// Ids by reference: those with a tag, and those with a digest alone.
    pub names: BTreeMap<Reference, Digest>,
}

impl State {
    /// The image that `text` means: a reference, an id, or a prefix of one.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] or [`ImageError::AmbiguousId`].
    pub fn find(&self, text: &str) -> Result<&Arc<Known>, ImageError> {
        let not_found = || ImageError::NotFound(text.to_owned());
        if let Some(id) = text.parse::<Reference>().ok().and_then(|reference| self.lookup(&reference)) {
            return self.visible(id).ok_or_else(not_found);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(not_found());
        }
        // Ids sort as their digits do.
        let low = Digest::from_hex(&format!("{prefix:0<64}")).map_err(|_| not_found())?;
        let mut found = self
            .images
            .range(low..)
            .take_while(|(id, _)| id.hex().starts_with(prefix))
            .filter(|(_, i)| !i.record.removed);
        match (found.next(), found.next()) {
            (Some((_, image)), None) => Ok(image),
            (Some(_), Some(_)) => Err(ImageError::AmbiguousId(text.to_owned())),
            (None, _) => Err(not_found()),
        }
    }

    /// The id that a reference names. One with tag and digest means the digest, as at a pull. The digest of an image
    /// that a reference's repository is known to have counts, and so does an id.
    pub fn lookup(&self, reference: &Reference) -> Option<Digest> {
        let Some(digest) = reference.digest() else { return self.names.get(reference).copied() };
        if let Some(id) = self.names.get(&reference.with_digest(digest)) {
            return Some(*id);
        }
        let of_repository = |id: &Digest| {
            self.names_of(*id).any(|n| n.registry() == reference.registry() && n.repository() == reference.repository())
        };
        let matches = |image: &Known| {
            let record = &image.record;
            record.id == digest || record.manifest == digest || record.index == Some(digest)
        };
        self.images.iter().find(|(id, image)| matches(image) && of_repository(id)).map(|(id, _)| *id)
    }

    /// An image that was not removed.
    pub fn visible(&self, id: Digest) -> Option<&Arc<Known>> {
        self.images.get(&id).filter(|image| !image.record.removed)
    }

    /// Names of an image.
    pub fn names_of(&self, id: Digest) -> impl Iterator<Item = &Reference> {
        self.names.iter().filter(move |(_, named)| **named == id).map(|(reference, _)| reference)
    }

    /// The image as lists and inspection show it.
    pub fn show(&self, known: &Known) -> Image {
        let (digests, tags): (Vec<&Reference>, Vec<_>) =
            self.names_of(known.record.id).partition(|reference| reference.digest().is_some());
        let familiar = |references: Vec<&Reference>| references.into_iter().map(Reference::familiar).collect();
        let document = &known.document;
        Image {
            id: known.record.id.to_string(),
            tags: familiar(tags),
            digests: familiar(digests),
            created: document.created.clone(),
            size: known.record.size,
            architecture: document.platform.architecture.clone(),
            os: document.platform.os.clone(),
            author: document.author.clone(),
            layers: document.layers.iter().map(Digest::to_string).collect(),
            config: document.config.clone(),
        }
    }

    /// Every digest that some image needs.
    pub fn content(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(|image| image.content().collect::<Vec<_>>()).collect()
    }
}

/// The kept state.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    state: RwLock<Arc<State>>,
    /// One change at a time. `None` after a failed one: redb takes nothing more until it is opened again.
    writer: Mutex<Option<Database>>,
}

impl Catalog {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let (database, state) = open(path)?;
        Ok(Self { path: path.to_owned(), state: RwLock::new(Arc::new(state)), writer: Mutex::new(Some(database)) })
    }

    /// All images and names now.
    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state and keeps the change. Blocks on the disk. Nothing is kept when `change` fails.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> Result<T, ImageError>) -> Result<T, ImageError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match writer.take() {
            Some(database) => database,
            None => {
                // The change that failed may be on disk all the same.
                let (database, state) = open(&self.path)?;
                self.replace(state);
                database
            }
        };
        let before = self.state();
        let mut after = State::clone(&before);
        let result = change(&mut after);
        if result.is_ok() && after != *before {
            keep(&database, &before, &after).map_err(|source| ImageError::Storage {
                context: "cannot keep the change of images and names".into(),
                source,
            })?;
            self.replace(after);
        }
        *writer = Some(database);
        result
    }

    fn replace(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }
}

fn open(path: &Path) -> Result<(Database, State), ImageError> {
    let fail = |e: redb::Error| ImageError::database(format_args!("open {}", path.display()), e);
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    let database = builder.create(path).map_err(|e| fail(e.into()))?;
    let format = prepare(&database).map_err(fail)?;
    if format != CURRENT_FORMAT {
        return Err(ImageError::Unsupported(format!("format {format} of {}", path.display())));
    }
    let state = load(&database, path)?;
    Ok((database, state))
}

/// Writes what differs, in one durable transaction.
fn keep(database: &Database, before: &State, after: &State) -> Result<(), StorageError> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    {
        let mut images = transaction.open_table(IMAGES).map_err(redb::Error::from)?;
        for id in before.images.keys().filter(|id| !after.images.contains_key(id)) {
            images.remove(id.to_string().as_str()).map_err(redb::Error::from)?;
        }
        for (id, image) in &after.images {
            if before.images.get(id).is_none_or(|old| old.record != image.record) {
                let record = serde_json::to_vec(&image.record)?;
                images.insert(id.to_string().as_str(), record.as_slice()).map_err(redb::Error::from)?;
            }
        }
        let mut names = transaction.open_table(NAMES).map_err(redb::Error::from)?;
        for name in before.names.keys().filter(|name| !after.names.contains_key(name)) {
            names.remove(name.to_string().as_str()).map_err(redb::Error::from)?;
        }
        for (name, id) in &after.names {
            if before.names.get(name) != Some(id) {
                names.insert(name.to_string().as_str(), id.to_string().as_str()).map_err(redb::Error::from)?;
            }
        }
    }
    transaction.commit().map_err(redb::Error::from)?;
    Ok(())
}

/// Makes the tables; gives the format number.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let format = {
        transaction.open_table(IMAGES)?;
        transaction.open_table(NAMES)?;
        let mut table = transaction.open_table(FORMAT)?;
        let found = table.get(())?.map(|value| value.value());
        match found {
            Some(format) => format,
            None => {
                table.insert((), CURRENT_FORMAT)?;
                CURRENT_FORMAT
            }
        }
    };
    transaction.commit()?;
    Ok(format)
}

/// Records of images, then names with ids.
type Tables = (Vec<Vec<u8>>, Vec<(String, String)>);

fn load(database: &Database, path: &Path) -> Result<State, ImageError> {
    let unreadable = |source: StorageError| ImageError::Storage { context: format!("read {}", path.display()), source };
    let read = || -> Result<Tables, redb::Error> {
        let transaction = database.begin_read()?;
        let images = transaction.open_table(IMAGES)?;
        let images =
            images.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect::<Result<_, redb::StorageError>>()?;
        let names = transaction.open_table(NAMES)?;
        let names = names
            .iter()?
            .map(|entry| entry.map(|(name, id)| (name.value().to_owned(), id.value().to_owned())))
            .collect::<Result<_, redb::StorageError>>()?;
        Ok((images, names))
    };
    let (images, names) = read().map_err(|e| unreadable(e.into()))?;
    let mut state = State::default();
    for record in images {
        let record: ImageRecord = serde_json::from_slice(&record).map_err(|e| unreadable(e.into()))?;
        let known = Known::new(record)?;
        state.images.insert(known.record.id, Arc::new(known));
    }
    for (name, id) in names {
        let named = id.parse().map_err(|_| ImageError::Malformed(format!("{id:?} in {} is no id", path.display())))?;
        state.names.insert(Reference::parse_untagged(&name)?, named);
    }
    Ok(state)
}

/// The record of `known` with a later time of use; `None` when the kept one is close enough.
pub fn used(known: &Known, now: Timestamp) -> Option<ImageRecord> {
    /// Milliseconds. A use is written at most once an hour.
    const COARSE: u64 = 3_600_000;
    (now.0 >= known.record.used_at.saturating_add(COARSE))
        .then(|| ImageRecord { used_at: now.0, ..known.record.clone() })
}
