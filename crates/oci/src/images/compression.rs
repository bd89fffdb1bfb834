//! Telling compressed streams by their first bytes, and reading through them.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::ImageError;

const READ_BUFFER: usize = 256 << 10;
/// Bound on the memory a zstd stream may ask for: 2^27 bytes, what the format calls recommended.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The plain content of `stream`, be it plain, gzip or zstd; `what` names it in errors.
pub(crate) fn decompress<'a>(
    what: &str,
    stream: impl Read + 'a,
) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut stream = BufReader::with_capacity(READ_BUFFER, stream);
    let error = |e| ImageError::io(format!("read {what}"), e);
    let unsupported = |media_type: &str| ImageError::UnsupportedMediaType {
        what: what.to_owned(),
        media_type: media_type.to_owned(),
    };
    match kind(stream.fill_buf().map_err(error)?) {
        Kind::Plain => Ok(Box::new(stream)),
        Kind::Gzip => Ok(Box::new(MultiGzDecoder::new(stream))),
        Kind::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(stream).map_err(error)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(error)?;
            Ok(Box::new(decoder))
        }
        Kind::Xz => Err(unsupported("application/x-xz")),
        Kind::Bzip2 => Err(unsupported("application/x-bzip2")),
    }
}

/// Whether a stream that begins with `start` must be decompressed.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    !matches!(kind(start), Kind::Plain)
}

enum Kind {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

fn kind(start: &[u8]) -> Kind {
    const MAGIC: [(&[u8], Kind); 4] = [
        (b"\x1f\x8b", Kind::Gzip),
        (b"\x28\xb5\x2f\xfd", Kind::Zstd),
        (b"\xfd7zXZ\0", Kind::Xz),
        (b"BZh", Kind::Bzip2),
    ];
    MAGIC
        .into_iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map_or(Kind::Plain, |(_, kind)| kind)
}

/// Reads what is left, so that checksums at the end are checked and digests cover the whole stream.
pub(crate) fn drain(stream: &mut impl Read) -> io::Result<u64> {
    io::copy(stream, &mut io::sink())
}
