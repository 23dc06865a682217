//! What stands before every page on TCP, as `web.config.file` asks: headers, the rate limit, the password.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::web_config::{Live, WebConfig, users::Login};

/// Marks a request whose sender is known by a password.
#[derive(Clone, Copy, Debug)]
pub(super) struct Authenticated;

/// The pages behind what the configuration asks for.
pub fn guarded(router: Router, live: Arc<Live>) -> Router {
    router.layer(middleware::from_fn_with_state(live, guard))
}

async fn guard(State(live): State<Arc<Live>>, mut request: Request, next: Next) -> Response {
    let config = live.current();
    let mut response = match refusal(&config, &mut request).await {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    for (name, value) in &config.headers {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

async fn refusal(config: &WebConfig, request: &mut Request) -> Option<Response> {
    if !config.rate.allows() {
        let why = "Too many requests: see rate_limit in the file of --web.config.file.\n";
        return Some((StatusCode::TOO_MANY_REQUESTS, why).into_response());
    }
    if config.users.is_empty() {
        return None;
    }
    let login = request.headers().get(header::AUTHORIZATION).and_then(Login::read);
    if let Some(login) = login
        && config.users.admit(login).await
    {
        request.extensions_mut().insert(Authenticated);
        return None;
    }
    let mut response = (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response();
    let scheme = HeaderValue::from_static("Basic realm=\"macvlan-agent\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    Some(response)
}
