//! One connection: HTTP/1.1 until it ends or is taken over.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::asked;

/// How long a client may take to send a request's head, and how long an idle connection is kept; as Docker's.
const HEAD: Duration = Duration::from_secs(300);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 128 << 10;

/// Serves one connection with a router, until it ends or `ended` comes true: then the request that is being answered is finished.
pub async fn serve_connection<C>(connection: C, router: Router, mut ended: watch::Receiver<bool>)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(router);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = asked(&mut ended) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}
