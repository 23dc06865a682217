//! `/metrics`: written, and compressed where the client wants that, while the client takes it.

use std::{
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
use futures_util::Stream;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout_at},
};

use super::{App, negotiation, taken};
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
    // Taken before the first byte, so that a scrape is of one moment however slowly it is read.
    let snapshot = match taken(&app).await {
        Ok(snapshot) => snapshot,
        Err(response) => return response,
    };
    let (format, gzip) = (negotiation::format(&headers), negotiation::gzip(&headers));
    let (sender, receiver) = mpsc::channel(4);
    let writer = spawn_blocking(move || {
        let own = app.own.gather();
        let result = write(Chunks { sender, deadline }, gzip, |take| {
            text::write(&snapshot, &own, format, take)
        });
        drop(permit);
        result
    });
    answer(format, gzip, Body::from_stream(stream(receiver, writer)))
}

/// What the writer sends, then its error if it has one: a body that was cut must not look like one that ended.
fn stream(
    receiver: mpsc::Receiver<Bytes>,
    writer: JoinHandle<io::Result<()>>,
) -> impl Stream<Item = io::Result<Bytes>> {
    futures_util::stream::unfold((receiver, Some(writer)), |(mut receiver, mut writer)| async move {
        if let Some(chunk) = receiver.recv().await {
            return Some((Ok(chunk), (receiver, writer)));
        }
        let result = writer.take()?.await.map_err(io::Error::other);
        result.flatten().err().map(|error| (Err(error), (receiver, None)))
    })
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

/// Writes text through the compressor, if any: `text` is given what takes a part of it away.
fn write(chunks: Chunks, gzip: bool, text: impl FnOnce(&mut text::Take<'_>) -> io::Result<()>) -> io::Result<()> {
    if !gzip {
        return text(&mut |part| chunks.send(Bytes::from(mem::replace(part, String::with_capacity(part.capacity())))));
    }
    let mut encoder = GzEncoder::new(BufWriter::with_capacity(text::CHUNK, chunks), Compression::fast());
    text(&mut |part| {
        encoder.write_all(part.as_bytes())?;
        part.clear();
        Ok(())
    })?;
    encoder.finish()?.flush()
}

/// Sends what is written to the client, as it takes it, until the deadline.
struct Chunks {
    sender: mpsc::Sender<Bytes>,
    deadline: Instant,
}

impl Chunks {
    fn send(&self, bytes: Bytes) -> io::Result<()> {
        let sent = self.sender.send(bytes);
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

    use futures_util::StreamExt as _;

    use super::*;

    fn lines(count: u32, gzip: bool, limit: Duration) -> impl Stream<Item = io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(4);
        let deadline = Instant::now() + limit;
        let writer = spawn_blocking(move || {
            write(Chunks { sender, deadline }, gzip, |take| {
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
        stream(receiver, writer)
    }

    async fn collected(gzip: bool) -> Vec<u8> {
        let chunks: Vec<_> = lines(50_000, gzip, PATIENCE).collect().await;
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
        let body = lines(500_000, false, Duration::from_millis(50));
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
