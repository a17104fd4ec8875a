//! A certificate authority: made once, and whoever has its key can sign for a node. Signing takes
//! only the key from a request, and decides all names itself.

use super::DOMAIN;
use super::leaf::Bound;
use crate::topology::RegionName;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateSigningRequestParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::PublicKeyData;
use rcgen::SanType;
use rcgen::SerialNumber;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use sha2::Digest;
use sha2::Sha256;
use std::net::IpAddr;
use std::time::Duration;
use time::OffsetDateTime;

const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Signs for nodes.
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: SecretString,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub region: RegionName,
    /// Further DNS names and IP addresses.
    pub extra: Vec<String>,
    pub bound: Option<Bound>,
}

/// A new private key, as PEM.
pub fn new_key() -> Result<SecretString, rcgen::Error> {
    Ok(KeyPair::generate()?.serialize_pem().into())
}

/// Asks for a certificate: the public half of `key`, signed with it.
pub fn request(key: &SecretString) -> Result<Vec<u8>, rcgen::Error> {
    let key = KeyPair::from_pem(key.expose_secret())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("a node of Roadstead");
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// Of the public key in a request: the same for each request with that key. Its signature is
/// checked.
pub fn key_hash(request: &[u8]) -> Result<[u8; 32], rcgen::Error> {
    let request = CertificateSigningRequestParams::from_der(&request.into())?;
    Ok(Sha256::digest(request.public_key.subject_public_key_info()).into())
}

impl Authority {
    pub fn create(name: &str) -> Result<Authority, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        good_for(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key)?;
        Ok(Authority {
            certificate: certificate.der().clone(),
            key: key.serialize_pem().into(),
            issuer: Issuer::new(params, key),
        })
    }

    pub fn load(
        certificate: CertificateDer<'static>,
        key: SecretString,
    ) -> Result<Authority, rcgen::Error> {
        let pair = KeyPair::from_pem(key.expose_secret())?;
        Ok(Authority {
            issuer: Issuer::from_ca_cert_der(&certificate, pair)?,
            certificate,
            key,
        })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn key(&self) -> &SecretString {
        &self.key
    }

    /// A certificate for the key of a request, whatever else that asks for.
    pub fn sign(
        &self,
        request: &[u8],
        names: &Names,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_der(&request.into())?;
        request.params = leaf(names, lifetime)?;
        Ok(request.signed_by(&self.issuer)?.der().clone())
    }

    /// A new key, and a certificate for it.
    pub fn issue(
        &self,
        names: &Names,
        lifetime: Duration,
    ) -> Result<(CertificateDer<'static>, SecretString), rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = leaf(names, lifetime)?.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), key.serialize_pem().into()))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a little before now: clocks differ.
fn good_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - lifetime / 365;
    params.not_after = now + lifetime;
    let mut serial: [u8; 16] = rand::random();
    // Positive, and never shortened.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

fn leaf(names: &Names, lifetime: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Roadstead region {}", names.region));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    good_for(&mut params, lifetime);
    let region = format!("{}.{DOMAIN}", names.region);
    params.subject_alt_names = vec![SanType::DnsName(region.try_into()?)];
    for name in &names.extra {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    if let Some(bound) = &names.bound {
        let uri = bound.to_string();
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}
