//! `web.config.file` as it is written: the fields of the exporters' own, and what can be said of them without opening
//! another file.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{WebConfigError, WebConfigError::Field};

/// A value and the line it stands in.
type Value<T> = Option<Spanned<T>>;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// TLS; without it there is none.
    pub(super) tls_server_config: Value<Tls>,
    /// HTTP.
    pub(super) http_server_config: Option<Http>,
    /// Users and bcrypt hashes.
    pub(super) basic_auth_users: Option<BTreeMap<String, Spanned<String>>>,
    /// Limit over all clients.
    pub(super) rate_limit: Option<RateLimit>,
}

/// `tls_server_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) cert: Value<String>,
    pub(super) key: Value<String>,
    pub(super) client_ca: Value<String>,
    pub(super) cert_file: Value<String>,
    pub(super) key_file: Value<String>,
    pub(super) client_ca_file: Value<String>,
    pub(super) client_auth_type: Value<String>,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    pub(super) min_version: Value<String>,
    pub(super) max_version: Value<String>,
    pub(super) cipher_suites: Value<Vec<String>>,
    pub(super) curve_preferences: Value<Vec<String>>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
}

/// `http_server_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    /// Whether HTTP/2 is offered, with TLS.
    pub(super) http2: Option<bool>,
    /// Headers of every answer.
    pub(super) headers: Option<BTreeMap<String, Spanned<String>>>,
}

/// `rate_limit`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimit {
    /// Time for one more request.
    pub(super) interval: Value<String>,
    /// Requests at once.
    pub(super) burst: Option<u32>,
}

/// Reads what the file says.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, WebConfigError> {
    match serde_saphyr::from_str::<Option<File>>(text) {
        Ok(file) => Ok(file.unwrap_or_default()),
        Err(error) => Err(WebConfigError::Syntax {
            path: path.to_owned(),
            line: error.location().map_or(0, |location| location.line()),
            what: error.without_snippet().to_string(),
        }),
    }
}

/// Names the place of a value that is wrong.
pub(super) fn wrong<T>(path: &Path, field: &str, value: &Spanned<T>, what: impl fmt::Display) -> WebConfigError {
    Field {
        path: path.to_owned(),
        line: value.referenced.line(),
        field: field.to_owned(),
        what: what.to_string(),
    }
}

/// The headers that exporters let be set, with the values they take; no values stand for any.
const HEADERS: &[(&str, &[&str])] = &[
    ("Content-Security-Policy", &[]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-XSS-Protection", &[]),
    ("Strict-Transport-Security", &[]),
];

impl File {
    /// Headers of every answer.
    pub(super) fn headers(&self, path: &Path) -> Result<HeaderMap, WebConfigError> {
        let mut headers = HeaderMap::new();
        let given = self.http_server_config.as_ref().and_then(|http| http.headers.as_ref());
        for (name, value) in given.into_iter().flatten() {
            let field = format!("http_server_config.headers.{name}");
            let wrong = |what: String| wrong(path, &field, value, what);
            let row = HEADERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            let Some((_, values)) = row else {
                let known: Vec<_> = HEADERS.iter().map(|(name, _)| *name).collect();
                return Err(wrong(format!(
                    "no header that can be set; these can: {}",
                    known.join(", ")
                )));
            };
            if !values.is_empty() && !values.contains(&value.value.to_ascii_lowercase().as_str()) {
                return Err(wrong(format!("{:?} is not {}", value.value, values.join(" or "))));
            }
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|error| wrong(error.to_string()))?;
            let value = HeaderValue::from_str(&value.value)
                .map_err(|_| wrong(format!("{:?} has characters that no header may have", value.value)))?;
            headers.insert(header, value);
        }
        Ok(headers)
    }

    /// Users and hashes.
    pub(super) fn users(&self, path: &Path) -> Result<BTreeMap<String, String>, WebConfigError> {
        let given = self.basic_auth_users.iter().flatten();
        given
            .map(|(user, hash)| match hash.value.parse::<bcrypt::HashParts>() {
                Ok(_) => Ok((user.clone(), hash.value.clone())),
                Err(_) => Err(wrong(
                    path,
                    &format!("basic_auth_users.{user}"),
                    hash,
                    "no bcrypt hash; expected one that begins with $2, as `htpasswd -nB` makes it",
                )),
            })
            .collect()
    }

    /// Interval and burst of the rate limit; an interval of 0 is none.
    pub(super) fn rate(&self, path: &Path) -> Result<(Duration, u32), WebConfigError> {
        let Some(limit) = &self.rate_limit else {
            return Ok((Duration::ZERO, 0));
        };
        let burst = limit.burst.unwrap_or(0);
        let Some(interval) = &limit.interval else {
            return Ok((Duration::ZERO, burst));
        };
        if interval.value == "0" {
            return Ok((Duration::ZERO, burst));
        }
        let interval = humantime::parse_duration(&interval.value).map_err(|error| {
            let what = format!(
                "{:?} is no duration ({error}); expected one like 1s or 100ms",
                interval.value
            );
            wrong(path, "rate_limit.interval", interval, what)
        })?;
        Ok((interval, burst))
    }

    /// Whether HTTP/2 is offered.
    pub(super) fn http2(&self) -> bool {
        self.http_server_config
            .as_ref()
            .and_then(|http| http.http2)
            .unwrap_or(true)
    }
}

/// A path in the file is taken from the file's own directory.
pub(super) fn beside(file: &Path, other: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(other)
}
