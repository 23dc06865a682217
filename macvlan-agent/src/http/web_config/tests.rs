use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

/// A directory with a server's certificate, its key and the file under test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        place.issue();
        place
    }

    /// Writes a certificate that signs itself.
    fn issue(&self) {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(["agent.test".to_owned()]).expect("a name");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        self.write("cert.pem", &certificate.pem());
        self.write("key.pem", &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).expect("it is written");
    }

    fn read(&self, text: &str) -> Result<WebConfig, String> {
        self.write("web.yml", text);
        let path = self.0.path().join("web.yml");
        WebConfig::read(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "web.yml"))
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

#[test]
fn an_empty_file_asks_for_nothing() {
    let place = Place::new();
    for text in ["", "# nothing\n", "{}\n", "tls_server_config:\nbasic_auth_users:\n"] {
        let config = place.read(text).expect("it is valid");
        assert!(
            config.tls.is_none() && config.users.is_empty() && config.headers.is_empty(),
            "{text}"
        );
        assert!((0..1000).all(|_| config.rate.allows()), "{text}");
    }
}

#[test]
fn everything_at_once_is_taken() {
    let place = Place::new();
    let cert = fs::read_to_string(place.0.path().join("cert.pem")).expect("it is there");
    let indented: String = cert.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "tls_server_config:\n  cert: |\n{indented}  key_file: key.pem\n  client_ca_file: cert.pem\n  \
         client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a.test]\n  min_version: TLS12\n  \
         max_version: TLS13\n  cipher_suites: []\n  curve_preferences: []\n  prefer_server_cipher_suites: true\n\
         http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n    \
         X-Content-Type-Options: nosniff\n    Content-Security-Policy: default-src 'none'\n\
         basic_auth_users:\n  eve: $2y$04$0NoBgdgXGrtIWYJGuCmYX.4jsDqSSSSZXKOuEk7oeQ8WhDjpkVfDy\n\
         rate_limit:\n  interval: 1s\n  burst: 20\n"
    );
    let config = place.read(&text).expect("it is valid");
    let tls = config.tls.expect("TLS");
    assert!(tls.verified);
    assert_eq!(tls.config.alpn_protocols, [b"http/1.1".to_vec()]);
    assert_eq!(config.headers.len(), 3);
    assert!(!config.users.is_empty());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_field() {
    let place = Place::new();
    place.write("empty.pem", "\n");
    let cases: &[(&str, &[&str])] = &[
        ("tls_server_config: [1]\n", &["web.yml:1: "]),
        (
            "tls_server_config:\n  cert_fil: x\n",
            &["web.yml:2: ", "cert_fil", "cert_file"],
        ),
        (
            "rate_limit:\n  interval: 1s\nusers: {}\n",
            &["web.yml:3: ", "users", "basic_auth_users"],
        ),
        (
            "tls_server_config:\n  key_file: key.pem\n",
            &["web.yml:2: tls_server_config: missing one of cert or cert_file"],
        ),
        (
            "tls_server_config:\n  cert_file: cert.pem\n",
            &["missing one of key or key_file"],
        ),
        (
            "tls_server_config:\n  cert_file: none.pem\n  key_file: key.pem\n",
            &[
                "web.yml:2: tls_server_config.cert_file: cannot read ",
                "none.pem: No such file",
            ],
        ),
        (
            "tls_server_config:\n  cert_file: empty.pem\n  key_file: key.pem\n",
            &["web.yml:2: tls_server_config.cert_file: no certificate in it"],
        ),
        (
            "tls_server_config:\n  cert_file: cert.pem\n  key_file: cert.pem\n",
            &["web.yml:3: tls_server_config.key_file: no private key in PEM"],
        ),
        (
            "tls_server_config:\n  cert: x\n  cert_file: cert.pem\n  key_file: key.pem\n",
            &["web.yml:2: tls_server_config.cert: cert_file is given as well"],
        ),
        (
            "http_server_config:\n  headers:\n    X-Other: x\n",
            &[
                "web.yml:3: http_server_config.headers.X-Other: no header that can be set",
                "Content-Security-Policy",
            ],
        ),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: maybe\n",
            &["web.yml:3: http_server_config.headers.X-Frame-Options: \"maybe\" is not deny or sameorigin"],
        ),
        (
            "basic_auth_users:\n  eve: secret\n",
            &["web.yml:2: basic_auth_users.eve: no bcrypt hash", "htpasswd"],
        ),
        (
            "rate_limit:\n  interval: fast\n  burst: 1\n",
            &["web.yml:2: rate_limit.interval: \"fast\" is no duration"],
        ),
        ("rate_limit:\n  interval: 1s\n  burst: -1\n", &["web.yml:3: "]),
        ("a: b: c\n", &["web.yml:1: "]),
    ];
    for (text, wanted) in cases {
        let error = place.read(text).expect_err(text);
        assert!(!error.contains('\n'), "{error}");
        for part in *wanted {
            assert!(error.contains(part), "{text}\n{error}\nhas no {part:?}");
        }
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_with_a_sentence() {
    let place = Place::new();
    let cases = [
        (
            "cipher_suites: [TLS_AES_128_GCM_SHA256]",
            "tls_server_config.cipher_suites: names of Go's TLS library",
        ),
        (
            "curve_preferences: [X25519]",
            "tls_server_config.curve_preferences: names of Go's TLS library",
        ),
        (
            "min_version: TLS10",
            "tls_server_config.min_version: TLS 1.0 and 1.1 are broken",
        ),
        (
            "max_version: TLS11",
            "tls_server_config.max_version: TLS 1.0 and 1.1 are broken",
        ),
        ("min_version: SSL3", "tls_server_config.min_version: no version of TLS"),
        (
            "client_auth_type: Maybe",
            "tls_server_config.client_auth_type: \"Maybe\" is none of NoClientCert, ",
        ),
        (
            "client_auth_type: RequireAndVerifyClientCert",
            "client_ca or client_ca_file",
        ),
        ("client_ca_file: cert.pem", "of no use without a client_auth_type"),
        (
            "client_allowed_sans: [a]",
            "tls_server_config.client_allowed_sans: no client is asked",
        ),
    ];
    for (line, wanted) in cases {
        let error = place.read(&format!("{TLS}  {line}\n")).expect_err(line);
        assert!(error.contains(wanted), "{line}: {error}");
    }
    let error = place.read(&format!("{TLS}  min_version: TLS13\n  max_version: TLS12\n"));
    assert!(error.expect_err("a contradiction").contains("above max_version"));
}

#[test]
fn a_change_is_followed_and_a_mistake_is_not() {
    let place = Place::new();
    place.write("web.yml", TLS);
    let live = Live::start(Some(place.0.path().join("web.yml"))).expect("it is valid");
    let first = live.current();
    assert!(Arc::ptr_eq(&first, &live.current()), "nothing changed");
    // A certificate that does not belong to its key, as in the middle of a rotation.
    let old = fs::read_to_string(place.0.path().join("key.pem")).expect("it is there");
    place.issue();
    let new = fs::read_to_string(place.0.path().join("key.pem")).expect("it is there");
    place.write("key.pem", &old);
    assert!(Arc::ptr_eq(&first, &live.current()), "the last good one stays");
    place.write("key.pem", &new);
    let second = live.current();
    assert!(!Arc::ptr_eq(&first, &second), "both have changed");
    // TLS stays what it was at start.
    place.write("web.yml", "basic_auth_users: {}\n");
    assert!(Arc::ptr_eq(&second, &live.current()));
    place.write("web.yml", &format!("{TLS}http_server_config: {{ http2: false }}\n"));
    assert!(!Arc::ptr_eq(&second, &live.current()));
}

#[test]
fn a_mistake_at_the_start_is_an_error() {
    let place = Place::new();
    assert!(Live::start(Some(place.0.path().join("none.yml"))).is_err());
    assert!(
        Live::start(None)
            .expect("no file is no mistake")
            .current()
            .tls
            .is_none()
    );
}
