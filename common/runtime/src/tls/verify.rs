//! Verifiers that remember whose certificate they looked at, so that a refusal can name it, and that check what the
//! library's own do not: whether a server is a coordinator, and whether a client may come without a certificate.

use std::sync::{Arc, OnceLock};

use common::access::NamePattern;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::Identity;

/// Whose certificate was looked at; empty until one came.
pub(super) type SeenCertificates = Arc<OnceLock<Identity>>;

/// A verifier of rustls, of clients or of servers, for one connection.
#[derive(Debug)]
pub(super) struct Noting<V: ?Sized> {
    inner: Arc<V>,
    seen: SeenCertificates,
    rule: PeerRule,
}

/// What is asked of the other side beyond a certificate of a trusted CA.
#[derive(Clone, Debug)]
pub(super) enum PeerRule {
    /// A client may come without a certificate.
    OptionalCertificate,
    /// A certificate is needed, and enough.
    Certificate,
    /// One of the names in the certificate has to match one of these.
    Named(Arc<[NamePattern]>),
}

impl<V: ?Sized> Noting<V> {
    pub(super) fn new(inner: Arc<V>, rule: PeerRule) -> (Arc<Self>, SeenCertificates) {
        let seen = SeenCertificates::default();
        (Arc::new(Self { inner, seen: Arc::clone(&seen), rule }), seen)
    }

    fn note(&self, certificate: &CertificateDer<'_>) {
        if let Ok(identity) = Identity::of(certificate) {
            // One certificate per handshake; if there were two, the first is as good a name.
            let _ = self.seen.set(identity);
        }
    }

    /// Checks the names, of a certificate that is otherwise in order.
    fn check_names(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let PeerRule::Named(patterns) = &self.rule else { return Ok(()) };
        let named = Identity::of(certificate).is_ok_and(|identity| {
            identity.certificate_names().any(|name| patterns.iter().any(|p| p.capture(name).is_some()))
        });
        if named { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) }
    }
}

impl ServerCertVerifier for Noting<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.note(end_entity);
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.check_names(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}

impl ClientCertVerifier for Noting<dyn ClientCertVerifier> {
    fn client_auth_mandatory(&self) -> bool {
        !matches!(self.rule, PeerRule::OptionalCertificate)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.note(end_entity);
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.check_names(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
