//! Bytes that a thread produces, as something to read for those who do not wait in threads.

use std::future::Future as _;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

/// Bytes that wait for a slow reader.
const BUFFER: usize = 256 << 10;

/// Runs `work` in a thread that may wait, and reads what it writes. If it fails, reading ends with its error, so that half is
/// not taken for whole. If the reader goes away, its writes fail.
pub fn produced<F>(work: F) -> Produced
where
    F: FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(BUFFER);
    let mut out = SyncIoBridge::new(far);
    let span = tracing::Span::current();
    let work = tokio::task::spawn_blocking(move || {
        span.in_scope(|| {
            work(&mut out)?;
            out.flush()
        })
    });
    Produced { reader: near, work: Some(work) }
}

/// See [`produced`].
pub struct Produced {
    reader: DuplexStream,
    work: Option<JoinHandle<io::Result<()>>>,
}

impl AsyncRead for Produced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        let Some(work) = &mut self.work else { return Poll::Ready(Ok(())) };
        let result = ready!(Pin::new(work).poll(context));
        self.work = None;
        Poll::Ready(result.map_err(io::Error::other).and_then(|result| result))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_is_an_error_if_the_work_failed() {
        let mut out = Vec::new();
        produced(|out| out.write_all(&[1; 500_000])).read_to_end(&mut out).await.unwrap();
        assert_eq!(out.len(), 500_000);
        out.clear();
        let failing = produced(|out| {
            out.write_all(b"half")?;
            Err(io::Error::other("broke"))
        });
        let mut failing = failing;
        assert_eq!(failing.read_to_end(&mut out).await.unwrap_err().to_string(), "broke");
        assert_eq!(out, b"half");
    }
}
