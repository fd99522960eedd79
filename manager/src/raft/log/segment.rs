//! Segment files: names, sizes, and the next one made ahead of use.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::super::disk::{Disk, DiskFile};

const SPARE: &str = "next.segment";
const ZEROS: usize = 1 << 20;

/// Name of segment `number`.
pub(super) fn name(number: u64) -> String {
    format!("{number:08}.log")
}

/// The number that a file's name stands for, if it is a segment's.
pub(super) fn number(name: &str) -> Option<u64> {
    name.strip_suffix(".log")?.parse().ok()
}

/// Sizes double from `first` to `largest`, so that a small cluster does not begin by writing the largest.
#[derive(Debug, Clone, Copy)]
pub struct SegmentSizes {
    /// Bytes of the first segment.
    pub first: u64,
    /// Bytes at which doubling ends.
    pub largest: u64,
}

impl Default for SegmentSizes {
    fn default() -> Self {
        Self { first: 4 << 20, largest: 64 << 20 }
    }
}

impl SegmentSizes {
    fn of(self, number: u64) -> u64 {
        let doublings = u32::try_from(number.min(16)).expect("at most 16");
        self.first.saturating_mul(1 << doublings).min(self.largest.max(self.first))
    }
}

/// Makes segments filled with zeros, one ahead: a flush into a file whose blocks exist writes no metadata.
pub(super) struct Maker {
    disk: Arc<dyn Disk>,
    sizes: SegmentSizes,
    in_background: bool,
    ahead: Option<JoinHandle<io::Result<()>>>,
}

impl Maker {
    pub(super) fn new(disk: Arc<dyn Disk>, sizes: SegmentSizes, in_background: bool) -> Self {
        Self { disk, sizes, in_background, ahead: None }
    }

    /// Starts making segment `number` on a thread, to be had later from [`Maker::take`].
    pub(super) fn prepare(&mut self, number: u64) -> io::Result<()> {
        if self.in_background && self.ahead.is_none() {
            let (disk, size) = (Arc::clone(&self.disk), self.sizes.of(number));
            let make = move || fill(&*disk, size);
            self.ahead = Some(std::thread::Builder::new().name("raft-segment".into()).spawn(make)?);
        }
        Ok(())
    }

    /// Segment `number`, empty, under its own durable name.
    pub(super) fn take(&mut self, number: u64) -> io::Result<Box<dyn DiskFile>> {
        match self.ahead.take() {
            Some(ahead) => {
                ahead.join().map_err(|_| io::Error::other("the thread that makes log segments panicked"))??
            }
            None => fill(&*self.disk, self.sizes.of(number))?,
        }
        let name = name(number);
        self.disk.rename(SPARE, &name)?;
        self.disk.sync()?;
        self.prepare(number + 1)?;
        self.disk.open(&name)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            // A spare that could not be made is made again, and its error reported, by whoever needs it.
            let _ = ahead.join();
        }
    }
}

fn fill(disk: &dyn Disk, size: u64) -> io::Result<()> {
    let mut file = disk.create(SPARE)?;
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < size {
        let step = usize::try_from(size - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_all_at(&zeros[..step], at)?;
        at += step as u64;
    }
    file.sync()
}
