//! SPDY's compressed header blocks. One zlib stream each way lives as long as the connection, so
//! blocks must be read and written in the order of their frames.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Header names (lower case) and values of a frame.
pub type Headers = Vec<(String, String)>;

/// Largest header block, uncompressed, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 << 10;

/// Words of the dictionary of SPDY/3 that come with their length in front.
#[rustfmt::skip]
const WORDS: [&str; 65] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "age", "allow", "authorization",
    "cache-control", "connection", "content-base", "content-encoding", "content-language",
    "content-length", "content-location", "content-md5", "content-range", "content-type", "date",
    "etag", "expect", "expires", "from", "host", "if-match", "if-modified-since", "if-none-match",
    "if-range", "if-unmodified-since", "last-modified", "location", "max-forwards", "pragma",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after", "server", "te",
    "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url",
    "public", "set-cookie", "keep-alive", "origin",
];
/// The rest of the dictionary.
const PHRASES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415\
    416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in WORDS {
        put(&mut bytes, word);
    }
    bytes.extend_from_slice(PHRASES.as_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Why a header block cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It is not compressed as SPDY says.
    #[error("bad compression: {0}")]
    Zlib(#[from] flate2::DecompressError),
    /// It is larger than [`MAX_HEADER_BYTES`].
    #[error("header block of more than {MAX_HEADER_BYTES} bytes")]
    TooLarge,
    /// Its lengths or its text make no sense.
    #[error("malformed header block")]
    Malformed,
}

/// Reads header blocks.
pub struct Decoder(Decompress);

impl Default for Decoder {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Decoder {
    /// Reads one block, which must be the next of its connection.
    ///
    /// # Errors
    /// The connection is lost then: later blocks cannot be read either.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.inflate(block)?).ok_or(HeaderError::Malformed)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let start = self.0.total_in();
        let mut out = Vec::with_capacity(1024);
        loop {
            let read = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let rest = block.get(read..).unwrap_or_default();
            let flush = FlushDecompress::Sync;
            match self.0.decompress_vec(rest, &mut out, flush) {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary())?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let all_read = self.0.total_in() - start >= block.len() as u64;
            if all_read && out.len() < out.capacity() {
                return Ok(out);
            }
            let stuck = out.len() < out.capacity() && rest.is_empty();
            if out.len() > MAX_HEADER_BYTES || stuck {
                return Err(HeaderError::TooLarge);
            }
            out.reserve(1024);
        }
    }
}

fn parse(mut bytes: &[u8]) -> Option<Headers> {
    let count = number(&mut bytes)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut bytes)?;
        headers.push((name.to_ascii_lowercase(), text(&mut bytes)?));
    }
    Some(headers)
}

fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    usize::try_from(u32::from_be_bytes(*number)).ok()
}

fn text(bytes: &mut &[u8]) -> Option<String> {
    let length = number(bytes)?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// Writes header blocks.
pub struct Encoder(Compress);

impl Encoder {
    /// The encoder of a new connection.
    ///
    /// # Errors
    /// If the compressor refuses its dictionary.
    pub fn new() -> Result<Self, flate2::CompressError> {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&dictionary())?;
        Ok(Self(compress))
    }

    /// Writes one block, which must be sent before the next is written.
    ///
    /// # Errors
    /// If the compressor fails.
    pub fn encode(&mut self, headers: &Headers) -> Result<Vec<u8>, flate2::CompressError> {
        let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
        let mut plain = count.to_be_bytes().to_vec();
        for (name, value) in headers {
            put(&mut plain, name);
            put(&mut plain, value);
        }
        let start = self.0.total_in();
        let mut out = Vec::with_capacity(plain.len() + 64);
        loop {
            let read = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let rest = plain.get(read..).unwrap_or_default();
            self.0.compress_vec(rest, &mut out, FlushCompress::Sync)?;
            let all_read = self.0.total_in() - start >= plain.len() as u64;
            if all_read && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_standard() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // The checksum that every SPDY/3 header stream starts with.
        let (a, b) = dictionary.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_come_back() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::default());
        let long = "x".repeat(5000);
        for headers in [
            vec![],
            vec![("streamtype".to_owned(), "stdin".to_owned())],
            vec![("a".to_owned(), long), ("b".to_owned(), String::new())],
            vec![("streamtype".to_owned(), "stdout".to_owned())],
        ] {
            let block = encoder.encode(&headers).unwrap();
            assert_eq!(decoder.decode(&block).unwrap(), headers);
        }
    }

    #[test]
    fn bombs_and_garbage_are_refused() {
        let bomb = vec![("a".to_owned(), "x".repeat(10 * MAX_HEADER_BYTES))];
        let block = Encoder::new().unwrap().encode(&bomb).unwrap();
        let result = Decoder::default().decode(&block);
        assert!(matches!(result, Err(HeaderError::TooLarge)));
        assert!(Decoder::default().decode(b"garbage").is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_none());
    }
}
