//! What is asked of a client's certificate.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// `client_auth_type`, by Go's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    /// None is asked for.
    No,
    /// One may be sent, whichever.
    Request,
    /// One must be sent, whichever.
    RequireAny,
    /// One may be sent, and must then be signed by an authority.
    VerifyIfGiven,
    /// One must be sent that an authority signed.
    RequireAndVerify,
}

const WORDS: [(&str, ClientAuth); 5] = [
    ("NoClientCert", ClientAuth::No),
    ("RequestClientCert", ClientAuth::Request),
    ("RequireAnyClientCert", ClientAuth::RequireAny),
    ("VerifyClientCertIfGiven", ClientAuth::VerifyIfGiven),
    ("RequireAndVerifyClientCert", ClientAuth::RequireAndVerify),
];

impl FromStr for ClientAuth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::No);
        }
        WORDS
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, auth)| *auth)
            .ok_or_else(|| {
                let words: Vec<_> = WORDS.iter().map(|(word, _)| *word).collect();
                format!("{text:?} is none of {}", words.join(", "))
            })
    }
}

impl ClientAuth {
    /// Whether an authority must have signed what is sent.
    #[must_use]
    pub(super) fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}

/// Checks a client's certificate in the handshake.
#[derive(Debug)]
pub(super) struct Verifier {
    auth: ClientAuth,
    chain: Option<Arc<dyn ClientCertVerifier>>,
    allowed: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub(super) fn new(
        auth: ClientAuth,
        chain: Option<Arc<dyn ClientCertVerifier>>,
        allowed: Vec<String>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self {
            auth,
            chain,
            allowed,
            provider,
        }
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn client_auth_mandatory(&self) -> bool {
        matches!(self.auth, ClientAuth::RequireAny | ClientAuth::RequireAndVerify)
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.verify_client_cert(leaf, intermediates, now)?;
        }
        if self.allowed.is_empty() || names(leaf).iter().any(|name| self.allowed.contains(name)) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The subject alternative names of a certificate, as text: DNS, IP, e-mail, URI.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => ip(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
