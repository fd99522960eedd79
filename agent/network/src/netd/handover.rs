//! Passing open sockets from a process to its successor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::sys::fds;

/// Sends descriptors, some at a time, each lot with one byte.
///
/// # Errors
/// Those of sendmsg(2).
pub async fn send(stream: &UnixStream, sockets: &[impl AsFd]) -> io::Result<()> {
    for lot in sockets.chunks(fds::MAX_FDS) {
        let lot: Vec<BorrowedFd<'_>> = lot.iter().map(AsFd::as_fd).collect();
        stream.async_io(Interest::WRITABLE, || fds::send(stream, &[1], &lot)).await?;
    }
    Ok(())
}

/// Receives that many descriptors.
///
/// # Errors
/// `UnexpectedEof` when fewer come; those of recvmsg(2).
pub async fn receive(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut byte = [0];
        let (length, lot) = stream.async_io(Interest::READABLE, || fds::receive(stream, &mut byte)).await?;
        if length == 0 || lot.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sockets.extend(lot);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_sockets_than_one_message_holds_arrive_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let files: Vec<std::fs::File> = (0..fds::MAX_FDS + 3).map(|_| tempfile::tempfile().unwrap()).collect();
        let (sent, received) = tokio::join!(send(&left, &files), receive(&right, files.len()));
        sent.unwrap();
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        let expected: Vec<u64> = files.iter().map(|f| inode(f.as_fd())).collect();
        assert_eq!(received.unwrap().iter().map(|f| inode(f.as_fd())).collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn a_sender_that_goes_away_is_an_error() {
        let (left, right) = UnixStream::pair().unwrap();
        drop(left);
        assert_eq!(receive(&right, 1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
