//! Brings a stream of chunks, as a client uploads it, to the blocking code that reads archives.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use super::error::ImageError;
use super::unpack::ArchiveError;

/// Chunks on the way. A slow disk is felt by the client.
const QUEUE: usize = 16;

/// An archive as it is uploaded.
pub type Upload = BoxStream<'static, io::Result<Bytes>>;

/// The reading end: blocks until the next chunk is here.
#[derive(Debug)]
pub struct UploadReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Runs `work` on the blocking pool, with a reader of `upload`.
///
/// # Cancel safety
/// When the future is dropped, the reader fails at its next read, so the work ends soon after.
pub async fn with_reader<T: Send + 'static>(
    mut upload: Upload,
    work: impl FnOnce(UploadReader) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let (sender, chunks) = mpsc::channel(QUEUE);
    let reader = UploadReader { chunks, current: Bytes::new() };
    let mut work = std::pin::pin!(super::error::blocking(move || work(reader)));
    let feed = async {
        while let Some(chunk) = upload.next().await {
            if sender.send(chunk).await.is_err() {
                // The reader has what it needs, or has failed: the work tells.
                break;
            }
        }
        drop(sender);
    };
    tokio::select! {
        biased;
        result = &mut work => result,
        () = feed => work.await,
    }
}

/// An archive's fault; one of this node's storage or of the upload itself is told apart.
pub fn archive_error(context: &str, error: ArchiveError) -> ImageError {
    ImageError::Archive { context: context.to_owned(), source: error }
}
