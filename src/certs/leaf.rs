//! Whose certificate is it? What a node's certificate says of it, and how long it is good.

use super::DOMAIN;
use crate::topology::NodeId;
use crate::topology::RegionName;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use std::time::SystemTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

const SCHEME: &str = "roadstead://";

/// A certificate that was issued at join is of one node in one lineage of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pub cluster_id: String,
    pub lineage: String,
    pub node: NodeId,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cluster, lineage, node) = (&self.cluster_id, &self.lineage, self.node);
        write!(f, "{SCHEME}{cluster}/{lineage}/node/{node}")
    }
}

impl FromStr for Bound {
    type Err = ();

    fn from_str(uri: &str) -> Result<Bound, ()> {
        let rest = uri.strip_prefix(SCHEME).ok_or(())?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [cluster_id, lineage, "node", node] => Ok(Bound {
                cluster_id: cluster_id.to_owned(),
                lineage: lineage.to_owned(),
                node: node.parse().map_err(|_| ())?,
            }),
            _ => Err(()),
        }
    }
}

/// Who a node is, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    pub region: RegionName,
    /// Of one that was issued at join; an operator's own certificate is good for any node of the
    /// region.
    pub bound: Option<Bound>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LeafInvalid {
    #[error("it is not an X.509 certificate")]
    Unreadable,
    #[error(
        "it names no region: one of its DNS names has to be REGION.{DOMAIN}, and it has {found:?}; \
         issue one with `roadstead certs issue --region REGION`"
    )]
    NoRegion { found: Vec<String> },
    #[error("it names more than one region: {found:?}; each region has a certificate of its own")]
    Regions { found: Vec<String> },
    #[error("its name {0:?} is not one that this release knows")]
    Uri(String),
}

impl PeerCertificate {
    pub fn parse(der: &[u8]) -> Result<PeerCertificate, LeafInvalid> {
        let report = Report::parse(der).ok_or(LeafInvalid::Unreadable)?;
        let mut regions: Vec<RegionName> = Vec::new();
        for name in &report.dns_names {
            let region = name.strip_suffix(DOMAIN).and_then(|n| n.strip_suffix('.'));
            if let Some(region) = region.and_then(|name| name.parse().ok()) {
                regions.push(region);
            }
        }
        let found = report.dns_names;
        let region = match &regions[..] {
            [region] => region.clone(),
            [] => return Err(LeafInvalid::NoRegion { found }),
            _ => return Err(LeafInvalid::Regions { found }),
        };
        let ours = report.uris.iter().find(|uri| uri.starts_with(SCHEME));
        let bound = ours.map(|uri| uri.parse().map_err(|()| LeafInvalid::Uri(uri.clone())));
        Ok(PeerCertificate {
            region,
            bound: bound.transpose()?,
            not_before: report.not_before,
            not_after: report.not_after,
        })
    }

    pub fn node(&self) -> Option<NodeId> {
        self.bound.as_ref().map(|bound| bound.node)
    }

    /// Less than a third of its life is left.
    pub fn is_to_be_renewed(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        self.left(now) < life.unwrap_or_default() / 3
    }

    /// How long it is still good.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// All that `certs check` tells of a certificate.
#[derive(Clone, Debug)]
pub struct Report {
    pub subject: String,
    pub issuer: String,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<String>,
    pub uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub is_ca: bool,
    pub for_servers: bool,
    pub for_clients: bool,
}

impl Report {
    pub fn parse(der: &[u8]) -> Option<Report> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let at = |time: &x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let mut report = Report {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            uris: Vec::new(),
            not_before: at(&certificate.validity().not_before),
            not_after: at(&certificate.validity().not_after),
            is_ca: certificate.is_ca(),
            for_servers: true,
            for_clients: true,
        };
        // Without the extension it is good for both.
        if let Some(usage) = certificate.extended_key_usage().ok()? {
            report.for_servers = usage.value.server_auth || usage.value.any;
            report.for_clients = usage.value.client_auth || usage.value.any;
        }
        if let Some(names) = certificate.subject_alternative_name().ok()? {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => report.dns_names.push((*name).to_owned()),
                    GeneralName::URI(uri) => report.uris.push((*uri).to_owned()),
                    GeneralName::IPAddress(bytes) => report.ip_addresses.push(address(bytes)),
                    _ => {}
                }
            }
        }
        Some(report)
    }
}

fn address(bytes: &[u8]) -> String {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return std::net::IpAddr::from(four).to_string();
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => std::net::IpAddr::from(sixteen).to_string(),
        Err(_) => hex::encode(bytes),
    }
}
