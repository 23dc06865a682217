//! TLS as `tls_server_config` asks for it; what rustls cannot do is refused with a sentence.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use serde_saphyr::Spanned;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    WebConfigError,
    client::{ClientAuth, Verifier},
    file::{File, Tls, beside, wrong},
};

/// The parts of a configuration that come from other files, in the order they were read.
pub(super) type Sources = Vec<(PathBuf, Vec<u8>)>;

/// What TLS needs, ready to be used.
#[derive(Debug)]
pub struct Ready {
    /// For each handshake.
    pub config: Arc<ServerConfig>,
    /// Whether a client must have shown a certificate that was verified.
    pub verified: bool,
}

/// Makes it ready, and notes which files it came from.
pub(super) fn ready(path: &Path, file: &File, sources: &mut Sources) -> Result<Option<Ready>, WebConfigError> {
    let Some(section) = &file.tls_server_config else {
        return Ok(None);
    };
    Section {
        path,
        tls: &section.value,
        whole: section,
    }
    .ready(file.http2(), sources)
    .map(Some)
}

struct Section<'a> {
    path: &'a Path,
    tls: &'a Tls,
    whole: &'a Spanned<Tls>,
}

impl Section<'_> {
    fn ready(&self, http2: bool, sources: &mut Sources) -> Result<Ready, WebConfigError> {
        self.refuse_what_cannot_be_done()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = self.certificates(self.pem(
            "cert",
            self.tls.cert.as_ref(),
            "cert_file",
            self.tls.cert_file.as_ref(),
            sources,
        )?)?;
        let key = self.key(self.pem(
            "key",
            self.tls.key.as_ref(),
            "key_file",
            self.tls.key_file.as_ref(),
            sources,
        )?)?;
        let auth = self.client_auth()?;
        let verifier = self.verifier(auth, &provider, sources)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions()?)
            .map_err(|error| self.wrong("tls_server_config", &error))?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        self.note_expiry(&chain);
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| self.wrong("tls_server_config.key", &format!("it does not belong to cert: {error}")))?;
        let (h2, h1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        config.alpn_protocols = if http2 { vec![h2, h1] } else { vec![h1] };
        config.ignore_client_order = self.tls.prefer_server_cipher_suites.unwrap_or(true);
        if auth != ClientAuth::No {
            // A resumed session would not be asked for its certificate again, which may have expired since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Ready {
            config: Arc::new(config),
            verified: auth == ClientAuth::RequireAndVerify,
        })
    }

    fn wrong(&self, field: &str, what: &impl std::fmt::Display) -> WebConfigError {
        wrong(self.path, field, self.whole, what)
    }

    /// Lists by Go's names mean nothing to rustls, and to ignore them would be to promise what is not kept.
    fn refuse_what_cannot_be_done(&self) -> Result<(), WebConfigError> {
        let lists = [
            ("cipher_suites", &self.tls.cipher_suites, "all of them are safe"),
            (
                "curve_preferences",
                &self.tls.curve_preferences,
                "X25519, P-256 and P-384",
            ),
        ];
        for (name, list, own) in lists {
            if let Some(list) = list.as_ref().filter(|list| !list.value.is_empty()) {
                let what = format!(
                    "names of Go's TLS library cannot be honoured, this agent has a list of its own ({own}); leave \
                     {name} out"
                );
                return Err(wrong(self.path, &format!("tls_server_config.{name}"), list, what));
            }
        }
        Ok(())
    }

    /// The text of a PEM that is given in the file or in another one.
    fn pem(
        &self,
        inline_name: &str,
        inline: Option<&Spanned<String>>,
        file_name: &str,
        file: Option<&Spanned<String>>,
        sources: &mut Sources,
    ) -> Result<(String, u64, Vec<u8>), WebConfigError> {
        let filled = |value: &&Spanned<String>| !value.value.is_empty();
        let (inline, file) = (inline.filter(filled), file.filter(filled));
        let field = |name: &str| format!("tls_server_config.{name}");
        match (inline, file) {
            (Some(text), None) => Ok((
                field(inline_name),
                text.referenced.line(),
                text.value.clone().into_bytes(),
            )),
            (None, Some(name)) => {
                let path = beside(self.path, &name.value);
                let bytes = fs::read(&path).map_err(|error| {
                    let what = format!("cannot read {}: {error}", path.display());
                    wrong(self.path, &field(file_name), name, what)
                })?;
                sources.push((path, bytes.clone()));
                Ok((field(file_name), name.referenced.line(), bytes))
            }
            (Some(text), Some(_)) => {
                let what = format!("{file_name} is given as well; expected one of the two");
                Err(wrong(self.path, &field(inline_name), text, what))
            }
            (None, None) => Err(self.wrong(
                "tls_server_config",
                &format!("missing one of {inline_name} or {file_name}"),
            )),
        }
    }

    fn certificates(
        &self,
        (field, line, pem): (String, u64, Vec<u8>),
    ) -> Result<Vec<CertificateDer<'static>>, WebConfigError> {
        let what = match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
            Ok(list) if !list.is_empty() => return Ok(list),
            Ok(_) => "no certificate in it; expected PEM, -----BEGIN CERTIFICATE-----".to_owned(),
            Err(error) => format!("no certificates in PEM: {error}"),
        };
        Err(self.at(field, line, what))
    }

    fn key(&self, (field, line, pem): (String, u64, Vec<u8>)) -> Result<PrivateKeyDer<'static>, WebConfigError> {
        PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| self.at(field, line, format!("no private key in PEM: {error}")))
    }

    fn at(&self, field: String, line: u64, what: String) -> WebConfigError {
        WebConfigError::Field {
            path: self.path.to_owned(),
            line,
            field,
            what,
        }
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, WebConfigError> {
        let parsed = |name: &str, given: Option<&Spanned<String>>, default: u8| {
            let Some(given) = given.filter(|given| !given.value.is_empty()) else {
                return Ok(default);
            };
            let wrong = |what| Err(wrong(self.path, &format!("tls_server_config.{name}"), given, what));
            match given.value.as_str() {
                "TLS12" => Ok(12),
                "TLS13" => Ok(13),
                "TLS10" | "TLS11" => wrong("TLS 1.0 and 1.1 are broken and not spoken here; expected TLS12 or TLS13"),
                _ => wrong("no version of TLS; expected TLS12 or TLS13"),
            }
        };
        let least = parsed("min_version", self.tls.min_version.as_ref(), 12)?;
        let most = parsed("max_version", self.tls.max_version.as_ref(), 13)?;
        if least > most {
            return Err(self.wrong("tls_server_config.min_version", &"it is above max_version"));
        }
        let all: [(u8, &'static SupportedProtocolVersion); 2] = [(13, &TLS13), (12, &TLS12)];
        let wanted = all.into_iter().filter(|(number, _)| (least..=most).contains(number));
        Ok(wanted.map(|(_, version)| version).collect())
    }

    fn client_auth(&self) -> Result<ClientAuth, WebConfigError> {
        let Some(given) = &self.tls.client_auth_type else {
            return Ok(ClientAuth::No);
        };
        given
            .value
            .parse()
            .map_err(|what: String| wrong(self.path, "tls_server_config.client_auth_type", given, what))
    }

    fn verifier(
        &self,
        auth: ClientAuth,
        provider: &Arc<CryptoProvider>,
        sources: &mut Sources,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, WebConfigError> {
        let allowed = self.tls.client_allowed_sans.clone().unwrap_or_default();
        let field = |name: &str| format!("tls_server_config.{name}");
        if auth == ClientAuth::No && !allowed.is_empty() {
            let what = "no client is asked for a certificate; expected a client_auth_type";
            return Err(self.wrong(&field("client_allowed_sans"), &what));
        }
        let has_authorities = [&self.tls.client_ca, &self.tls.client_ca_file]
            .into_iter()
            .flatten()
            .any(|given| !given.value.is_empty());
        if auth == ClientAuth::No {
            return if has_authorities {
                let what = "client certificate authorities are of no use without a client_auth_type";
                Err(self.wrong(&field("client_auth_type"), &what))
            } else {
                Ok(None)
            };
        }
        if auth.verifies() && !has_authorities {
            let what = "it needs the authorities that sign clients' certificates: client_ca or client_ca_file";
            return Err(self.wrong(&field("client_auth_type"), &what));
        }
        let chain = if auth.verifies() {
            Some(self.chain_verifier(provider, sources)?)
        } else {
            None
        };
        let verifier = Verifier::new(auth, chain, allowed, Arc::clone(provider));
        Ok(Some(Arc::new(verifier)))
    }

    fn chain_verifier(
        &self,
        provider: &Arc<CryptoProvider>,
        sources: &mut Sources,
    ) -> Result<Arc<dyn ClientCertVerifier>, WebConfigError> {
        let (inline, file) = (self.tls.client_ca.as_ref(), self.tls.client_ca_file.as_ref());
        let pem = self.pem("client_ca", inline, "client_ca_file", file, sources)?;
        let (field, line) = (pem.0.clone(), pem.1);
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(pem)? {
            roots
                .add(certificate)
                .map_err(|error| self.at(field.clone(), line, format!("no authority: {error}")))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| self.at(field, line, error.to_string()))
    }

    /// An expired certificate is served all the same, as exporters do, but not in silence.
    fn note_expiry(&self, chain: &[CertificateDer<'_>]) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let end = chain
            .first()
            .and_then(|leaf| X509Certificate::from_der(leaf).ok())
            .map(|(_, leaf)| leaf.validity().not_after);
        if let Some(end) = end
            && u64::try_from(end.timestamp()).unwrap_or(0) < now
        {
            tracing::warn!(file = %self.path.display(), expired = %end, "the server's certificate has expired: clients will refuse it");
        }
    }
}
