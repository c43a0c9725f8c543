//! TLS by rustls (ring provider): certificates from files, checked when they are named, not at the first handshake.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

pub type ServerTls = Arc<ServerConfig>;

/// How an outgoing link speaks TLS.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    /// What the certificate must name; None: the host that is connected to.
    pub server_name: Option<ServerName<'static>>,
}

/// Certificates for a listener or a link; see the type stub.
#[pyclass(frozen, module = "raftkv_node._engine")]
pub struct TlsConfig {
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    roots: Option<Arc<RootCertStore>>,
    require_client_cert: bool,
    server_name: Option<ServerName<'static>>,
}

fn bad(text: String) -> PyErr {
    PyValueError::new_err(text)
}

fn read_certificates(path: &str) -> PyResult<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| bad(format!("cannot read certificates from {path}: {e}")))?;
    if certificates.is_empty() {
        return Err(bad(format!("{path} holds no PEM certificate")));
    }
    Ok(certificates)
}

#[pymethods]
impl TlsConfig {
    #[new]
    #[pyo3(signature = (cert_file=None, key_file=None, ca_file=None, require_client_cert=false, server_name=None))]
    fn new(
        cert_file: Option<&str>,
        key_file: Option<&str>,
        ca_file: Option<&str>,
        require_client_cert: bool,
        server_name: Option<&str>,
    ) -> PyResult<Self> {
        let identity = match (cert_file, key_file) {
            (Some(cert), Some(key)) => {
                let chain = read_certificates(cert)?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|e| bad(format!("cannot read the private key in {key}: {e}")))?;
                Some((chain, key))
            }
            (None, None) => None,
            _ => return Err(bad("cert_file and key_file go together".into())),
        };
        let roots = ca_file.map(read_roots).transpose()?;
        if require_client_cert && roots.is_none() {
            return Err(bad("require_client_cert needs a ca_file".into()));
        }
        let server_name = server_name
            .map(|n| {
                ServerName::try_from(n.to_owned())
                    .map_err(|_| bad(format!("{n:?} is no server name")))
            })
            .transpose()?;
        let config = TlsConfig {
            identity,
            roots,
            require_client_cert,
            server_name,
        };
        if config.identity.is_some() {
            config.server(&[])?; // a key that does not fit its certificate is found here
        }
        Ok(config)
    }
}

fn read_roots(path: &str) -> PyResult<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|e| {
            bad(format!(
                "{path} holds a certificate that cannot be an authority: {e}"
            ))
        })?;
    }
    Ok(Arc::new(roots))
}

impl TlsConfig {
    /// For a listener that offers `protocols` by ALPN.
    pub fn server(&self, protocols: &[&[u8]]) -> PyResult<ServerTls> {
        let Some((chain, key)) = &self.identity else {
            return Err(bad("a TLS listener needs cert_file and key_file".into()));
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?;
        let builder = match &self.roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider);
                let verifier = if self.require_client_cert {
                    verifier
                } else {
                    verifier.allow_unauthenticated()
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| bad(e.to_string()))?)
            }
        };
        let mut config = builder
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| bad(format!("certificate and key cannot be used: {e}")))?;
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// For an outgoing link.
    pub fn client(&self) -> PyResult<ClientTls> {
        let Some(roots) = &self.roots else {
            return Err(bad(
                "a TLS link needs a ca_file to check the other side against".into(),
            ));
        };
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|e| bad(e.to_string()))?
                .with_root_certificates(roots.clone());
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|e| bad(format!("certificate and key cannot be used: {e}")))?,
        };
        Ok(ClientTls {
            config: Arc::new(config),
            server_name: self.server_name.clone(),
        })
    }
}
