//! Certificates made for a test, and a client that speaks TLS.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::exposition::{self, Response};

/// The name of every server here.
pub const SERVER: &str = "agent.test";

/// An authority that signs what the tests need.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Whether a certificate is good for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is.
    Valid,
    /// It was.
    Expired,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?))
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name, good for servers and clients.
    pub fn issue(&self, name: &str, validity: Validity) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if validity == Validity::Expired {
            parameters.not_before = date_time_ymd(2020, 1, 1);
            parameters.not_after = date_time_ymd(2020, 2, 1);
        }
        let certificate = parameters.signed_by(&key, &self.0)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Writes it beside a `web.config.file`, as `cert.pem` and `key.pem`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::write(directory.join("cert.pem"), &self.certificate)?;
        fs::write(directory.join("key.pem"), &self.key)?;
        Ok(())
    }
}

/// A client that trusts one authority, and may have a certificate of its own.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    /// One that offers these protocols over TLS.
    pub fn new(authority: &Authority, identity: Option<&Identity>, protocols: &[&str]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
            )?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Self(Arc::new(config)))
    }

    /// A connection after its handshake.
    pub fn connect(&self, address: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect(address).with_context(|| format!("no answer at {address}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let connection = ClientConnection::new(Arc::clone(&self.0), ServerName::try_from(SERVER)?)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream
            .conn
            .complete_io(&mut stream.sock)
            .context("the handshake of TLS")?;
        Ok(stream)
    }

    /// `GET path` with more headers.
    pub fn get(&self, address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        exposition::exchange(self.connect(address)?, path, headers)
    }
}
