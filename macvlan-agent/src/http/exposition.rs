//! `/metrics`: written, and compressed where the client wants that, while the client takes it.

use std::{
    future::ready,
    io::{self, BufWriter, Write},
    mem,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};
use futures_util::{Stream, StreamExt as _};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout_at},
};

use super::{App, negotiation};
use crate::metrics::text::{self, Format};

/// How long a client may take for a whole scrape that does not say its own limit.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Ok(permit) = app.permit() else {
        let why = format!(
            "Limit of concurrent requests reached ({}), try again later: see --web.max-requests.\n",
            app.pages.max_requests
        );
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    let deadline = Instant::now() + patience(&headers);
    let (format, gzip) = (negotiation::format(&headers), negotiation::gzip(&headers));
    let (sender, mut receiver) = mpsc::channel(4);
    let writer = spawn_blocking(move || {
        let own = app.own.gather();
        // Taken before the first byte, so that a scrape is of one moment however slowly it is read; and last, since who
        // asks is told what is newest.
        let snapshot = (app.take)();
        let result = write(Chunks::new(sender, deadline), gzip, |take| {
            text::write(&snapshot, &own, format, take)
        });
        drop(permit);
        result
    });
    let body = match receiver.recv().await {
        Some(first) => Body::from_stream(stream(first, receiver, writer)),
        // Most hosts' whole scrape is but one part.
        None => match last(writer).await {
            Ok(whole) => Body::from(whole),
            Err(error) => {
                let why = format!("the scrape failed: {error}\n");
                return (StatusCode::INTERNAL_SERVER_ERROR, why).into_response();
            }
        },
    };
    answer(format, gzip, body)
}

/// The last part, once the writer has ended.
async fn last(writer: JoinHandle<io::Result<Bytes>>) -> io::Result<Bytes> {
    writer.await.map_err(io::Error::other).flatten()
}

/// What the writer sends, and the last part, which it gives back, or its error: a body that was cut must not look like
/// one that ended.
fn stream(
    first: Bytes,
    receiver: mpsc::Receiver<Bytes>,
    writer: JoinHandle<io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<Bytes>> {
    let parts = futures_util::stream::unfold((receiver, Some(writer)), |(mut receiver, mut writer)| async move {
        if let Some(part) = receiver.recv().await {
            return Some((Ok(part), (receiver, writer)));
        }
        let result = last(writer.take()?).await;
        Some((result, (receiver, None)))
    });
    futures_util::stream::once(ready(Ok(first))).chain(parts)
}

fn answer(format: Format, gzip: bool, body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// What is left of the scrape's time, by the client's own limit where Prometheus says it.
fn patience(headers: &HeaderMap) -> Duration {
    let said = headers
        .get("x-prometheus-scrape-timeout-seconds")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    said.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map_or(PATIENCE, |limit| limit.min(PATIENCE))
}

/// Writes text through the compressor, if any, and gives the last part back: `text` is given what takes a part of it away.
fn write(
    mut chunks: Chunks,
    gzip: bool,
    text: impl FnOnce(&mut text::Take<'_>) -> io::Result<()>,
) -> io::Result<Bytes> {
    if !gzip {
        text(&mut |part| chunks.send(Bytes::from(mem::replace(part, String::with_capacity(part.capacity())))))?;
        return Ok(chunks.last);
    }
    let mut encoder = GzEncoder::new(BufWriter::with_capacity(text::CHUNK, chunks), Compression::fast());
    text(&mut |part| {
        encoder.write_all(part.as_bytes())?;
        part.clear();
        Ok(())
    })?;
    Ok(encoder.finish()?.into_inner()?.last)
}

/// Sends what is written to the client, as it takes it, until the deadline; all but the last part.
struct Chunks {
    sender: mpsc::Sender<Bytes>,
    deadline: Instant,
    last: Bytes,
}

impl Chunks {
    fn new(sender: mpsc::Sender<Bytes>, deadline: Instant) -> Self {
        Self {
            sender,
            deadline,
            last: Bytes::new(),
        }
    }

    fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let before = mem::replace(&mut self.last, bytes);
        if before.is_empty() {
            return Ok(());
        }
        let sent = self.sender.send(before);
        tokio::runtime::Handle::current()
            .block_on(async { timeout_at(self.deadline, sent).await })
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Bytes::copy_from_slice(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, io::Read as _};

    use super::*;

    async fn lines(count: u32, gzip: bool, limit: Duration) -> impl Stream<Item = io::Result<Bytes>> {
        let (sender, mut receiver) = mpsc::channel(4);
        let deadline = Instant::now() + limit;
        let writer = spawn_blocking(move || {
            write(Chunks::new(sender, deadline), gzip, |take| {
                let mut part = String::new();
                (0..count).try_for_each(|number| {
                    let _ = writeln!(part, "line {number}");
                    if part.len() < text::CHUNK {
                        Ok(())
                    } else {
                        take(&mut part)
                    }
                })?;
                take(&mut part)
            })
        });
        let first = receiver.recv().await.expect("more than one part");
        stream(first, receiver, writer)
    }

    async fn collected(gzip: bool) -> Vec<u8> {
        let chunks: Vec<_> = lines(50_000, gzip, PATIENCE).await.collect().await;
        chunks
            .into_iter()
            .flat_map(|chunk| chunk.expect("nothing fails"))
            .collect()
    }

    #[tokio::test]
    async fn compressed_or_not_it_is_the_same_text() {
        let (plain, packed) = (collected(false).await, collected(true).await);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .expect("valid gzip");
        assert!(unpacked == plain);
        assert!(packed.len() * 2 < plain.len(), "{} of {}", packed.len(), plain.len());
    }

    #[tokio::test]
    async fn a_client_that_sleeps_is_left_and_told() {
        let body = lines(500_000, false, Duration::from_millis(50)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let chunks: Vec<_> = body.collect().await;
        let last = chunks.last().expect("there are chunks");
        let why = last.as_ref().expect_err("it took too long");
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_limit_is_the_clients_own() {
        let limit = |text: &str| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(text).expect("a header");
            headers.insert("x-prometheus-scrape-timeout-seconds", value);
            patience(&headers)
        };
        assert_eq!(limit("10"), Duration::from_secs(10));
        assert_eq!(limit("0.5"), Duration::from_millis(500));
        for text in ["-1", "NaN", "x", "1e300"] {
            assert_eq!(limit(text), PATIENCE, "{text}");
        }
        assert_eq!(patience(&HeaderMap::new()), PATIENCE);
    }
}
