//! Where a node is, by the name that TLS checks (`certs::host`): blob transfers go to that name,
//! and this gives them the address on record, so that nothing of it is ever asked of a name server.

use super::Known;
use crate::certs::in_host;
use crate::topology::NodeId;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::RwLock;

pub(super) struct Names(Arc<RwLock<BTreeMap<NodeId, Known>>>);

impl Names {
    pub fn new(known: &Arc<RwLock<BTreeMap<NodeId, Known>>>) -> Names {
        Names(known.clone())
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let known = self.0.read().expect("no panic while held");
        let address = in_host(name.as_str())
            .and_then(|(node, _)| known.get(&node))
            .map(|known| known.address.clone());
        drop(known);
        Box::pin(async move {
            let Some(address) = address else {
                return Err(format!("{} is not a node that is known", name.as_str()).into());
            };
            let found: Vec<_> = tokio::net::lookup_host(&address).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
