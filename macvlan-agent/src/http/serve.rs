//! Connections: accepted, secured, and given time, but not for ever.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, response::Response};
use hyper::{Request, body::Incoming, server::conn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::{Service, ServiceExt as _};

use super::{guard::Authenticated, web_config::Live};

/// Time for the handshake of TLS, and then for the head of the first request.
const GREETING: Duration = Duration::from_secs(10);

/// Time for the head of a later request: more than scrapes are apart, so that a Prometheus keeps its connection.
const IDLE: Duration = Duration::from_secs(150);

/// Time in which a client that takes nothing is given up by the kernel, in milliseconds.
const UNACKNOWLEDGED: u32 = 60_000;

/// Connections at once on a listener; more wait to be accepted.
const CONNECTIONS: usize = 512;

/// Bytes of a request's head.
const HEAD: usize = 64 * 1024;

/// Serves until `stopped`, then finishes the requests in hand.
pub async fn serve(listener: TcpListener, router: Router, live: Arc<Live>, stopped: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(stopped);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stopped => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let connection = Connection {
                    client,
                    router: router.clone(),
                    live: Arc::clone(&live),
                    watcher: graceful.watcher(),
                };
                tokio::spawn(async move {
                    connection.serve(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, for one: that passes, and must not become a busy loop.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

struct Connection {
    client: SocketAddr,
    router: Router,
    live: Arc<Live>,
    watcher: Watcher,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // Without these a connection still works.
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
        let config = self.live.current();
        let Some(tls) = &config.tls else {
            return self.speak(stream, false, false).await;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
        match timeout(GREETING, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.speak(stream, http2, tls.verified).await;
            }
            Ok(Err(error)) => tracing::debug!(client = %self.client, %error, "the handshake of TLS failed"),
            Err(_) => tracing::debug!(client = %self.client, "the handshake of TLS took too long"),
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool, verified: bool) {
        let greeted = Arc::new(AtomicBool::new(false));
        let service = TowerToHyperService::new(requests(self.router, self.client, verified, Arc::clone(&greeted)));
        let stream = TokioIo::new(stream);
        if http2 {
            let mut builder = conn::http2::Builder::new(TokioExecutor::new());
            let head = u32::try_from(HEAD).unwrap_or(u32::MAX);
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(head)
                .max_concurrent_streams(64)
                .keep_alive_interval(GREETING)
                .keep_alive_timeout(GREETING);
            let connection = builder.serve_connection(stream, service);
            finish(self.watcher, connection, self.client, &greeted).await;
        } else {
            let mut builder = conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_header_size(HEAD)
                .max_buf_size(2 * HEAD);
            let connection = builder.serve_connection(stream, service);
            finish(self.watcher, connection, self.client, &greeted).await;
        }
    }
}

/// The router as a service of one connection: it tells the pages who asks, and notes that a request came.
fn requests(
    router: Router,
    client: SocketAddr,
    verified: bool,
    greeted: Arc<AtomicBool>,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send {
    router.map_request(move |request: Request<Incoming>| {
        greeted.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(client));
        if verified {
            request.extensions_mut().insert(Authenticated);
        }
        request
    })
}

/// Serves a connection to its end, unless it sends no request at all.
async fn finish<C: GracefulConnection<Error = hyper::Error>>(
    watcher: Watcher,
    connection: C,
    client: SocketAddr,
    greeted: &AtomicBool,
) {
    let connection = watcher.watch(connection);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = sleep(GREETING) => {
            if !greeted.load(Ordering::Relaxed) {
                tracing::debug!(%client, "it sent no request in time");
                return;
            }
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a connection ended early");
    }
}
