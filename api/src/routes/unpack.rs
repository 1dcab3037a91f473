//! Archives from clients: plain, or compressed with gzip.

use std::io::{self, Read as _};

use flate2::read::MultiGzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::SyncIoBridge;

use crate::error::ApiError;
use crate::pipe;

/// Bytes that are unpacked at once.
const CHUNK: usize = 64 << 10;
/// How streams of gzip, bzip2, xz and zstd begin.
const GZIP: &[u8] = &[0x1f, 0x8b];
const OTHERS: [(&str, &[u8]); 3] =
    [("bzip2", b"BZh"), ("xz", &[0xfd, b'7', b'z', b'X', b'Z', 0]), ("zstd", &[0x28, 0xb5, 0x2f, 0xfd])];

/// The archive in a body, unpacked if it is packed.
///
/// # Errors
/// It is packed in a way that is not known here, or cannot be read.
pub async fn unpacked(
    mut body: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Box<dyn AsyncRead + Send + Unpin>, ApiError> {
    let mut start = [0u8; 6];
    let mut have = 0;
    while have < start.len() {
        let rest = start.get_mut(have..).unwrap_or_default();
        match body.read(rest).await.map_err(|e| ApiError::bad(format!("the archive cannot be read: {e}")))? {
            0 => break,
            count => have += count,
        }
    }
    let start = start.get(..have).unwrap_or_default().to_vec();
    if let Some((name, _)) = OTHERS.iter().find(|(_, magic)| start.starts_with(magic)) {
        return Err(ApiError::refused(
            &format!("an archive packed with {name}"),
            "archives are unpacked from gzip or not at all",
            "send it plain or packed with gzip",
        ));
    }
    let whole = tokio::io::AsyncReadExt::chain(io::Cursor::new(start.clone()), body);
    if start.starts_with(GZIP) { Ok(Box::new(gunzip(whole))) } else { Ok(Box::new(whole)) }
}

/// Unpacks in a thread of its own; an error there is an error of the reader.
fn gunzip(packed: impl AsyncRead + Send + Unpin + 'static) -> impl AsyncRead + Send + Unpin {
    let packed = SyncIoBridge::new(packed);
    pipe::produced(move |out| {
        let mut unpacked = MultiGzDecoder::new(packed);
        let mut bytes = vec![0; CHUNK];
        loop {
            match unpacked.read(&mut bytes)? {
                0 => return Ok(()),
                count => out.write_all(bytes.get(..count).unwrap_or_default())?,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    async fn read(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let mut reader = unpacked(io::Cursor::new(bytes)).await.map_err(|e| e.body.message)?;
        let mut out = Vec::new();
        reader.read_to_end(&mut out).await.map_err(|e| e.to_string())?;
        Ok(out)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn plain_and_gzip_are_read() {
        let text = vec![7u8; 300_000];
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&text).unwrap();
        let packed = packer.finish().unwrap();
        assert_eq!(read(text.clone()).await.unwrap(), text);
        assert_eq!(read(packed.clone()).await.unwrap(), text);
        assert_eq!(read(Vec::new()).await.unwrap(), b"");
        assert_eq!(read(b"ab".to_vec()).await.unwrap(), b"ab");
        let cut = packed[..packed.len() - 9].to_vec();
        assert!(read(cut).await.is_err(), "a cut archive must not look whole");
        let refused = read(b"BZh91AY".to_vec()).await.unwrap_err();
        assert!(refused.contains("bzip2"), "{refused}");
    }
}
