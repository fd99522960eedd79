//! Docker's framing of two streams in one (moby `pkg/stdcopy`): stream, three zeros, length as big-endian u32, bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use skep_proto::model::engine::OutputStream;

/// Length of a frame's header.
const HEADER: usize = 8;
/// Largest frame that is taken, in bytes. Writers cut at 16 KiB for logs and 32 KiB for streams.
const LIMIT: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Output of the process.
    Output(OutputStream),
    /// A message of the daemon: clients stop with it as their error.
    SystemError,
}

/// Bytes that are no frames.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte names no stream.
    #[error("a frame of stream {0}, which does not exist")]
    Stream(u8),
    /// The length is beyond reason.
    #[error("a frame of {0} bytes, the limit is {LIMIT}")]
    Length(usize),
}

/// One frame with that payload, which its writer keeps well below the limit.
pub fn frame(kind: Kind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    out.put_u8(match kind {
        Kind::Output(OutputStream::Stdout) => 1,
        Kind::Output(OutputStream::Stderr) => 2,
        Kind::SystemError => 3,
    });
    out.put_bytes(0, 3);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
    out.freeze()
}

/// Takes the first whole frame off `buffer`; `None` when it has not arrived in full.
///
/// # Errors
/// Bytes that are no frames: what follows cannot be read either.
pub fn take(buffer: &mut BytesMut) -> Result<Option<(Kind, Bytes)>, FrameError> {
    let Some(header) = buffer.get(..HEADER) else { return Ok(None) };
    let kind = match header[0] {
        0 | 1 => Kind::Output(OutputStream::Stdout),
        2 => Kind::Output(OutputStream::Stderr),
        3 => Kind::SystemError,
        other => return Err(FrameError::Stream(other)),
    };
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if length > LIMIT {
        return Err(FrameError::Length(length));
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some((kind, buffer.split_to(length).freeze())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_were_cut(
            frames in prop::collection::vec((1u8..4, prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            cut in 1usize..40,
        ) {
            let kinds = [Kind::Output(OutputStream::Stdout), Kind::Output(OutputStream::Stderr), Kind::SystemError];
            let wire: Vec<u8> = frames.iter().flat_map(|(k, p)| frame(kinds[usize::from(*k) - 1], p)).collect();
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some((kind, payload)) = take(&mut buffer).unwrap() {
                    seen.push((kind, payload.to_vec()));
                }
            }
            let sent: Vec<_> = frames.into_iter().map(|(k, p)| (kinds[usize::from(k) - 1], p)).collect();
            prop_assert_eq!(seen, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }
    }
}
