//! What the client would rather have, by its `Accept` and `Accept-Encoding`.

use axum::http::{HeaderMap, HeaderName, header};

use crate::metrics::text::Format;

/// One entry of such a header: what, its parameters, and how much it is wanted in thousandths.
struct Wish<'a> {
    what: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: u16,
}

/// The exposition's format: text 0.0.4 unless OpenMetrics 1.0 is wanted more. Nothing is refused, since exporters
/// answer a browser as well.
#[must_use]
pub(super) fn format(headers: &HeaderMap) -> Format {
    let mut best = (0, Format::Text);
    for wish in wishes(headers, &header::ACCEPT) {
        let format = match (wish.what, wish.parameter("version")) {
            ("application/openmetrics-text", None | Some("1.0.0")) => Format::OpenMetrics,
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", None) => Format::Text,
            _ => continue,
        };
        if wish.quality > best.0 {
            best = (wish.quality, format);
        }
    }
    best.1
}

/// Whether the client takes gzip: only when it says so.
#[must_use]
pub(super) fn gzip(headers: &HeaderMap) -> bool {
    let (mut named, mut any, mut identity) = (None, 0, 1);
    for wish in wishes(headers, &header::ACCEPT_ENCODING) {
        match wish.what {
            "gzip" | "x-gzip" => named = Some(wish.quality),
            "*" => any = wish.quality,
            "identity" => identity = wish.quality,
            _ => {}
        }
    }
    let gzip = named.unwrap_or(any);
    gzip > 0 && gzip >= identity
}

impl Wish<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| *value)
    }
}

/// The entries of all headers of that name. What cannot be read is left out.
fn wishes<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Wish<'a>> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(wish)
}

fn wish(entry: &str) -> Option<Wish<'_>> {
    let mut parts = entry.split(';').map(str::trim);
    let what = parts.next().filter(|what| !what.is_empty())?;
    let mut wish = Wish {
        what,
        parameters: Vec::new(),
        quality: 1000,
    };
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if name.eq_ignore_ascii_case("q") {
            wish.quality = quality(value)?;
        } else {
            wish.parameters.push((name, value));
        }
    }
    Some(wish)
}

/// `0`, `0.5`, `1.000` in thousandths.
fn quality(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: u16 = whole.parse().ok()?;
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    Some(whole.checked_mul(1000)?.checked_add(thousandths)?.min(1000))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    fn format_for(accept: &'static str) -> Format {
        format(&headers(&header::ACCEPT, &[accept]))
    }

    #[test]
    fn a_prometheus_gets_openmetrics() {
        for accept in [
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text",
            "application/openmetrics-text; version=\"1.0.0\"; q=0.9 , text/plain;q=0.8",
        ] {
            assert_eq!(format_for(accept), Format::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn everyone_else_gets_text() {
        assert_eq!(format(&HeaderMap::new()), Format::Text);
        for accept in [
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4",
            "text/plain;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5",
            "application/openmetrics-text;version=0.0.1,text/plain;q=0.5",
            "application/openmetrics-text;version=1.0.0;q=0",
            "application/openmetrics-text;q=2.5x",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            ",,;",
        ] {
            assert_eq!(format_for(accept), Format::Text, "{accept}");
        }
    }

    #[test]
    fn several_headers_are_one_list() {
        let several = headers(
            &header::ACCEPT,
            &["text/plain;q=0.1", "application/openmetrics-text;q=0.2"],
        );
        assert_eq!(format(&several), Format::OpenMetrics);
    }

    #[test]
    fn gzip_is_for_those_who_ask() {
        let asks = |value| gzip(&headers(&header::ACCEPT_ENCODING, &[value]));
        assert!(!gzip(&HeaderMap::new()));
        for value in [
            "gzip",
            "deflate, gzip;q=0.5",
            "*",
            "br;q=1.0, x-gzip;q=0.2",
            "identity;q=0.5, gzip",
        ] {
            assert!(asks(value), "{value}");
        }
        for value in ["", "identity", "gzip;q=0", "*, gzip;q=0", "br", "gzip;q=0.5, identity"] {
            assert!(!asks(value), "{value}");
        }
    }
}
