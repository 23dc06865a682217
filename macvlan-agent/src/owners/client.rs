//! GET over a Unix socket, with a limit of time and size. By hyper, which serves the metrics as well: a whole client for
//! Docker would be a hundred crates for two requests, and stumble where podman answers a little differently.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer may be.
const LENGTH: usize = 8 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be reached.
    #[error(transparent)]
    Connect(#[from] io::Error),
    /// HTTP went wrong.
    #[error("it broke off: {0}")]
    Http(#[from] hyper::Error),
    /// It takes too long.
    #[error("it does not answer within two seconds")]
    Slow,
    /// It says too much.
    #[error("its answer has more than 8 MiB")]
    Long,
    /// It refuses.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// It is something else.
    #[error("its answer is not what Docker's would be: {0}")]
    Content(#[from] serde_json::Error),
    /// The answer's body could not be read.
    #[error("its answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// A connection that is used for one question after the other.
pub(super) struct Client(http1::SendRequest<Empty<Bytes>>);

impl Client {
    pub(super) async fn connect(socket: &Path) -> Result<Self, ClientError> {
        timeout(PATIENCE, async {
            let stream = UnixStream::connect(socket).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // It ends with the sender; an error of its own is the request's as well.
            tokio::spawn(connection);
            Ok(Self(sender))
        })
        .await
        .map_err(|_| ClientError::Slow)?
    }

    /// None where there is no such thing.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, ClientError> {
        timeout(PATIENCE, self.ask(path)).await.map_err(|_| ClientError::Slow)?
    }

    async fn ask<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, ClientError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = path
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| ClientError::Body(error.into()))?;
        let host = header::HeaderValue::from_static("localhost");
        request.headers_mut().insert(header::HOST, host);
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LENGTH).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ClientError::Long
            } else {
                ClientError::Body(error)
            }
        })?;
        match status {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&body.to_bytes())?)),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(ClientError::Status(other)),
        }
    }
}
