//! What is served: the metrics, health, a page of links, and the read-only API.

mod exposition;
mod guard;
pub mod listen;
mod negotiation;
mod pages;
pub mod serve;
pub mod web_config;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    task::spawn_blocking,
};

pub use guard::guarded;

use crate::{manage::daemon::Manager, metrics::own::Own, snapshot::Snapshot};
use guard::Authenticated;

/// Makes a snapshot; may block.
pub type Take = dyn Fn() -> Snapshot + Send + Sync;

/// Who may see what, and where.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Path of the metrics.
    pub telemetry_path: String,
    /// Scrapes at once; 0 sets no limit.
    pub max_requests: usize,
    /// Whether `/` and `/api/v1` answer everyone.
    pub remote_api: bool,
}

/// What the handlers share.
pub struct App {
    take: Box<Take>,
    own: Arc<Own>,
    manager: Option<Arc<Manager>>,
    scrapes: Arc<Semaphore>,
    pages: Pages,
}

impl App {
    /// The handlers' state.
    #[must_use]
    pub fn new(take: Box<Take>, own: Arc<Own>, pages: Pages) -> Self {
        let limit = match pages.max_requests {
            0 => Semaphore::MAX_PERMITS,
            limit => limit.min(Semaphore::MAX_PERMITS),
        };
        Self {
            take,
            own,
            manager: None,
            scrapes: Arc::new(Semaphore::new(limit)),
            pages,
        }
    }

    /// Lets `POST /-/reload` read the configuration anew.
    #[must_use]
    pub fn with_reload(self, manager: Arc<Manager>) -> Self {
        Self {
            manager: Some(manager),
            ..self
        }
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        Arc::clone(&self.scrapes).try_acquire_owned()
    }
}

/// The router: a function of its state, so that tests need no socket.
pub fn router(app: Arc<App>) -> Router {
    let local = Router::new()
        .route("/", get(pages::index))
        .route("/api/v1/parents", get(pages::parents))
        .route("/api/v1/sub-interfaces", get(pages::sub_interfaces))
        .route("/api/v1/hooks", get(pages::hooks))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), loopback_only));
    Router::new()
        .route(&app.pages.telemetry_path.clone(), get(exposition::metrics))
        .route("/-/healthy", get(|| async { "macvlan-agent is healthy.\n" }))
        .route("/-/ready", get(pages::ready))
        .route("/-/reload", post(pages::reload))
        .merge(local)
        .with_state(app)
}

async fn loopback_only(
    State(app): State<Arc<App>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let authenticated = request.extensions().get::<Authenticated>().is_some();
    if authenticated || app.pages.remote_api || client.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    let why = "This page shows names and MACs: it answers loopback only, unless --web.config.file asks for a password \
               or a verified client certificate, or --web.enable-remote-api is given.\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

/// A snapshot made where blocking is allowed.
async fn taken(app: &Arc<App>) -> Result<Snapshot, Response> {
    let app = Arc::clone(app);
    spawn_blocking(move || (app.take)()).await.map_err(|error| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the snapshot failed: {error}\n"),
        )
            .into_response()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;

    fn app(take: Box<Take>, max_requests: usize) -> Router {
        let pages = Pages {
            telemetry_path: "/metrics".to_owned(),
            max_requests,
            remote_api: false,
        };
        let own = Own::new(true).expect("the table is valid");
        router(Arc::new(App::new(take, Arc::new(own), pages)))
    }

    async fn ask(router: &Router, path: &str, from: [u8; 4]) -> StatusCode {
        let request = Request::get(path)
            .extension(ConnectInfo(SocketAddr::from((from, 1))))
            .body(Body::empty())
            .expect("a request");
        let Ok(response) = router.clone().oneshot(request).await;
        response.status()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_scrape_too_many_is_sent_away() {
        let barrier = Arc::new(Barrier::new(2));
        let (entered, inside) = mpsc::channel();
        let held = Arc::clone(&barrier);
        let take = move || {
            // A test that ended does not listen.
            let _ = entered.send(());
            held.wait();
            Snapshot::default()
        };
        let router = app(Box::new(take), 1);
        let first = tokio::spawn({
            let router = router.clone();
            async move { ask(&router, "/metrics", [127, 0, 0, 1]).await }
        });
        spawn_blocking(move || inside.recv())
            .await
            .expect("no panic")
            .expect("it began");
        assert_eq!(
            ask(&router, "/metrics", [127, 0, 0, 1]).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(ask(&router, "/-/healthy", [127, 0, 0, 1]).await, StatusCode::OK);
        spawn_blocking(move || barrier.wait()).await.expect("no panic");
        assert_eq!(first.await.expect("no panic"), StatusCode::OK);
    }

    #[tokio::test]
    async fn names_and_macs_are_for_the_loopback() {
        let router = app(Box::new(Snapshot::default), 0);
        for path in ["/", "/api/v1/parents"] {
            assert_eq!(ask(&router, path, [127, 0, 0, 1]).await, StatusCode::OK);
            assert_eq!(ask(&router, path, [192, 0, 2, 1]).await, StatusCode::FORBIDDEN);
        }
        assert_eq!(ask(&router, "/metrics", [192, 0, 2, 1]).await, StatusCode::OK);
    }
}
