//! Pages for people and probes: the page of links, readiness, and the read-only API.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};

use super::{App, taken};
use crate::view::HostView;

pub(super) async fn index(State(app): State<Arc<App>>) -> Html<String> {
    let path = &app.pages.telemetry_path;
    let links: String = [
        (path.as_str(), "Metrics"),
        ("/-/ready", "Ready"),
        ("/-/healthy", "Healthy"),
        ("/api/v1/parents", "Parents"),
        ("/api/v1/sub-interfaces", "Sub-interfaces"),
        ("/api/v1/hooks", "Hooks"),
    ]
    .iter()
    .map(|(path, name)| format!("<li><a href=\"{path}\">{name}</a></li>\n"))
    .collect();
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>macvlan-agent</title></head>\n<body>\n\
         <h1>macvlan-agent</h1>\n<p>Version {}. Which frames reached each macvlan sub-interface, which did not, and \
         why.</p>\n<ul>\n{links}</ul>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    ))
}

pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let snapshot = match taken(&app).await {
        Ok(snapshot) => snapshot,
        Err(response) => return response,
    };
    let list = |lines: &[String]| lines.iter().map(|line| format!("- {line}\n")).collect::<String>();
    let (missing, degraded) = (snapshot.not_ready(), snapshot.degraded());
    if !missing.is_empty() {
        let besides = if degraded.is_empty() {
            String::new()
        } else {
            format!("besides, it is degraded:\n{}", list(&degraded))
        };
        let text = format!("macvlan-agent is not ready:\n{}{besides}", list(&missing));
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    if degraded.is_empty() {
        return "macvlan-agent is ready.\n".into_response();
    }
    format!("macvlan-agent is ready, degraded:\n{}", list(&degraded)).into_response()
}

pub(super) async fn reload(State(app): State<Arc<App>>) -> Response {
    let Some(manager) = &app.manager else {
        let why = "Reloading over HTTP is off: --web.enable-lifecycle turns it on; SIGHUP always works.\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    };
    match manager.reload().await {
        Ok(_) => "The configuration was read anew.\n".into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

pub(super) async fn parents(State(app): State<Arc<App>>) -> Response {
    match taken(&app).await {
        Ok(snapshot) => json(&HostView::of(&snapshot).parents),
        Err(response) => response,
    }
}

pub(super) async fn sub_interfaces(State(app): State<Arc<App>>) -> Response {
    match taken(&app).await {
        Ok(snapshot) => json(&HostView::of(&snapshot).sub_interfaces),
        Err(response) => response,
    }
}

pub(super) async fn hooks(State(app): State<Arc<App>>) -> Response {
    let snapshot = match taken(&app).await {
        Ok(snapshot) => snapshot,
        Err(response) => return response,
    };
    let list: Vec<_> = snapshot
        .hooks
        .iter()
        .map(|state| {
            let missing = state.outcome.as_ref().err();
            serde_json::json!({
                "hook": state.hook.name(),
                "parent": state.parent,
                "required": state.required,
                "attached": state.outcome.is_ok(),
                "mechanism": state.outcome.as_ref().ok(),
                "reason": missing.map(|missing| missing.reason),
                "detail": missing.map(|missing| &missing.detail),
            })
        })
        .collect();
    json(&list)
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
