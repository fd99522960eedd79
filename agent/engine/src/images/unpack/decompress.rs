//! Decompression by looking at the first bytes: gzip (RFC 1952), zstd (RFC 8878), or none. Media types are not trusted.

use std::io::{self, BufReader, Chain, Cursor, Read};

use super::ArchiveError;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ_MAGIC: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2_MAGIC: &[u8] = b"BZh";
/// Largest window that a zstd stream may ask for, as a power of two: 128 MiB, what `zstd -d` accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Compressed bytes read at a time.
const INPUT_BUFFER: usize = 128 * 1024;

/// A source whose first bytes were looked at.
type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A reader of the uncompressed content.
pub enum Decompressed<R: Read> {
    /// Not compressed.
    Plain(Source<R>),
    /// gzip, possibly of several members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<Source<R>>>),
    /// zstd, possibly of several frames.
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `source`.
    ///
    /// # Errors
    /// A compression that is not supported, or the source's error.
    pub fn new(mut source: R) -> Result<Self, ArchiveError> {
        let mut start = Vec::with_capacity(XZ_MAGIC.len());
        (&mut source).take(XZ_MAGIC.len() as u64).read_to_end(&mut start)?;
        let is = |magic: &[u8]| start.starts_with(magic);
        let (gzip, zstd) = (is(GZIP_MAGIC), is(ZSTD_MAGIC));
        if is(XZ_MAGIC) {
            return Err(ArchiveError::UnsupportedCompression("xz"));
        }
        if is(BZIP2_MAGIC) {
            return Err(ArchiveError::UnsupportedCompression("bzip2"));
        }
        let source = BufReader::with_capacity(INPUT_BUFFER, Cursor::new(start).chain(source));
        if gzip {
            return Ok(Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))));
        }
        if zstd {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            return Ok(Self::Zstd(Box::new(decoder)));
        }
        Ok(Self::Plain(source))
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<u8>, ArchiveError> {
        let mut out = Vec::new();
        Decompressed::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_compression_is_known_by_its_first_bytes() {
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&gzip(b"content")).unwrap(), b"content");
        assert_eq!(read(&zstd::encode_all(&b"content"[..], 1).unwrap()).unwrap(), b"content");
        assert!(matches!(read(b"BZh91AY"), Err(ArchiveError::UnsupportedCompression("bzip2"))));
    }

    #[test]
    fn members_that_follow_one_another_are_one_content() {
        assert_eq!(read(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
    }

    #[test]
    fn a_cut_compressed_stream_is_an_error() {
        let whole = gzip(&[7; 10_000]);
        assert!(read(&whole[..whole.len() / 2]).is_err());
        let whole = zstd::encode_all(&[7; 10_000][..], 1).unwrap();
        assert!(read(&whole[..whole.len() / 2]).is_err());
    }
}
