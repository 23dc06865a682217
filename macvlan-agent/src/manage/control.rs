//! The control socket: changes over HTTP on a Unix socket, for root and the group `macvlan-agent`, which equals root.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::{
    Json, Router,
    extract::{
        ConnectInfo, Path as UrlPath, Request, State,
        connect_info::{Connected, IntoMakeServiceWithConnectInfo},
        rejection::JsonRejection,
    },
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, post},
    serve::IncomingStream,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::{UnixListener, UnixStream, unix::UCred};

use super::{
    daemon::Manager,
    operation::{How, OperationError, Report},
    record::Spec,
};
use crate::config::file::{Shim, SubInterface};

/// Its members may change interfaces: they are as good as root.
const GROUP: &str = "macvlan-agent";

/// `POST /api/v1/sub-interfaces` and `/api/v1/shims`: the body of the configuration, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutOf<T> {
    /// What is asked for.
    #[serde(flatten)]
    pub spec: T,
    /// It is there and is to be changed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replace: bool,
    /// What it was when the change was made up; where it is something else by now, nothing is changed.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub was: Option<T>,
    /// It goes again after so many seconds unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// `POST /api/v1/apply`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// The configuration.
    pub config_file: PathBuf,
    /// Remove what an earlier one asked for.
    #[serde(default)]
    pub prune: bool,
}

/// What goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Refused {
    error: String,
}

/// The listening socket, removed with it.
pub struct Control {
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`; whoever else listens there is left alone.
pub async fn listen(path: &Path) -> Result<(Control, UnixListener)> {
    match UnixStream::connect(path).await {
        Ok(_) => bail!(
            "another agent listens on the control socket {}: choose another with --control.socket",
            path.display()
        ),
        // Left over by one that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "cannot listen on the control socket {}; --control.socket names another",
            path.display()
        )
    })?;
    let control = Control { path: path.to_owned() };
    // Before this nobody but root may connect, since others may not write to what root makes.
    let mode = match Group::from_name(GROUP) {
        Ok(Some(group)) => {
            chown(path, None, Some(group.gid.as_raw()))?;
            0o660
        }
        _ => 0o600,
    };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok((control, listener))
}

/// Serves changes.
pub fn service(manager: Arc<Manager>) -> IntoMakeServiceWithConnectInfo<Router, Peer> {
    Router::new()
        .route("/api/v1/sub-interfaces", post(put_sub_interface))
        .route("/api/v1/sub-interfaces/{id}", delete(remove))
        .route("/api/v1/shims", post(put_shim))
        .route("/api/v1/shims/{id}", delete(remove))
        .route("/api/v1/shims/{id}/confirm", post(confirm))
        .route("/api/v1/apply", post(apply))
        .route("/-/reload", post(reload))
        .layer(middleware::from_fn(only_root))
        .with_state(manager)
        .into_make_service_with_connect_info::<Peer>()
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Peer(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

async fn only_root(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if peer.0.is_some_and(|peer| may_change(peer.uid(), peer.gid())) {
        return next.run(request).await;
    }
    let error = format!("only root and members of the group {GROUP} may change interfaces");
    Refusal(StatusCode::FORBIDDEN, error).into_response()
}

fn may_change(uid: u32, gid: u32) -> bool {
    if uid == 0 {
        return true;
    }
    let Ok(Some(group)) = Group::from_name(GROUP) else {
        return false;
    };
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    group.gid == Gid::from_raw(gid) || user.is_some_and(|user| group.mem.contains(&user.name))
}

type Answer = Result<Json<Report>, Refusal>;

/// A request that was not done, as it is answered.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Refused { error: self.1 })).into_response()
    }
}

fn answer(result: Result<Report>) -> Answer {
    result.map(Json).map_err(|error| {
        let status = match error.downcast_ref::<OperationError>() {
            Some(OperationError::Refused(_) | OperationError::Configuration(_)) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, format!("{error:#}"))
    })
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    match body {
        Ok(Json(value)) => Ok(value),
        Err(rejection) => Err(Refusal(StatusCode::BAD_REQUEST, rejection.body_text())),
    }
}

async fn put_sub_interface(
    State(manager): State<Arc<Manager>>,
    given: Result<Json<PutOf<SubInterface>>, JsonRejection>,
) -> Answer {
    let put = body(given)?;
    let was = put.was.map(Spec::SubInterface);
    let how = how(put.replace, was, put.confirm_within);
    answer(manager.put(Spec::SubInterface(put.spec), how).await)
}

async fn put_shim(State(manager): State<Arc<Manager>>, given: Result<Json<PutOf<Shim>>, JsonRejection>) -> Answer {
    let put = body(given)?;
    let how = how(put.replace, put.was.map(Spec::Shim), put.confirm_within);
    answer(manager.put(Spec::Shim(put.spec), how).await)
}

fn how(replace: bool, was: Option<Spec>, confirm_within: Option<u64>) -> How {
    How {
        replace,
        was,
        confirm_within: confirm_within.map(Duration::from_secs),
    }
}

async fn remove(State(manager): State<Arc<Manager>>, UrlPath(id): UrlPath<String>) -> Answer {
    answer(manager.remove(id).await)
}

async fn confirm(State(manager): State<Arc<Manager>>, UrlPath(id): UrlPath<String>) -> Answer {
    answer(manager.confirm(id).await)
}

async fn apply(State(manager): State<Arc<Manager>>, given: Result<Json<Apply>, JsonRejection>) -> Answer {
    let wish = body(given)?;
    answer(manager.apply(wish.config_file, wish.prune).await)
}

async fn reload(State(manager): State<Arc<Manager>>) -> Answer {
    answer(manager.reload().await)
}

/// What is asked of an agent that runs.
#[derive(Clone, Debug)]
pub struct Put {
    path: &'static str,
    json: serde_json::Value,
}

impl Put {
    /// One that makes or changes.
    pub fn new(spec: &Spec, how: &How) -> Result<Self> {
        fn json<T: Serialize>(spec: &T, was: Option<&T>, how: &How) -> serde_json::Result<serde_json::Value> {
            serde_json::to_value(PutOf {
                spec,
                replace: how.replace,
                was,
                confirm_within: how.confirm_within.map(|within| within.as_secs()),
            })
        }
        Ok(match (spec, &how.was) {
            (Spec::SubInterface(spec), was) => Self {
                path: "/api/v1/sub-interfaces",
                json: json(spec, was.as_ref().and_then(Spec::sub_interface), how)?,
            },
            (Spec::Shim(spec), was) => Self {
                path: "/api/v1/shims",
                json: json(spec, was.as_ref().and_then(Spec::shim), how)?,
            },
        })
    }
}

/// A connection to an agent that runs.
pub struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    /// Connects; none where no agent listens.
    pub async fn connect(path: &Path) -> Result<Option<Self>> {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => {
                let path = path.display();
                return Err(error)
                    .with_context(|| format!("an agent runs, and its control socket {path} cannot be used"));
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Some(Self(sender)))
    }

    /// Makes or changes a sub-interface or shim.
    pub async fn put(&mut self, put: &Put) -> Result<Report> {
        self.ask("POST", put.path, Some(&put.json)).await
    }

    /// Removes one.
    pub async fn remove(&mut self, id: &str, shim: bool) -> Result<Report> {
        let kind = if shim { "shims" } else { "sub-interfaces" };
        self.ask("DELETE", &format!("/api/v1/{kind}/{id}"), None).await
    }

    /// Keeps a shim.
    pub async fn confirm(&mut self, id: &str) -> Result<()> {
        self.ask::<Report>("POST", &format!("/api/v1/shims/{id}/confirm"), None)
            .await?;
        Ok(())
    }

    /// Applies a configuration.
    pub async fn apply(&mut self, config_file: &Path, prune: bool) -> Result<Report> {
        let json = serde_json::to_value(Apply {
            config_file: config_file.to_owned(),
            prune,
        })?;
        self.ask("POST", "/api/v1/apply", Some(&json)).await
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        json: Option<&serde_json::Value>,
    ) -> Result<T> {
        let body = json.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = self
            .0
            .send_request(request)
            .await
            .context("the agent that runs does not answer")?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes).context("the agent that runs gave an answer of another version");
        }
        match serde_json::from_slice::<Refused>(&bytes) {
            Ok(refused) => bail!("{}", refused.error),
            Err(_) => bail!("the agent that runs answered {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_and_a_stranger_may_not() {
        assert!(may_change(0, 0));
        assert!(!may_change(65_534, 65_534));
    }

    #[test]
    fn a_body_is_that_of_the_configuration() {
        let text = r#"{"name":"macv1","parent":"eth0","mode":"bridge","replace":true}"#;
        let put: PutOf<SubInterface> = serde_json::from_str(text).expect("valid");
        assert!(put.replace);
        assert_eq!(serde_json::to_string(&put).expect("it encodes"), text);
    }
}
