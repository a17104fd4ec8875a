//! Who holds how many connections. One address cannot take all of a listener's: what it opens
//! beyond its share is closed at once, since it would only wait in front of everybody else in the
//! kernel's queue.

use rustix::process::Resource;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

const TELL_EVERY: Duration = Duration::from_secs(60);

/// Of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all; more wait in the kernel's queue.
    pub connections: usize,
    /// Of one address, or of one IPv6 network of 64 bits, which is what one customer gets.
    pub per_address: usize,
    /// Or of this machine, where a proxy or a tunnel speaks for many.
    pub per_loopback: usize,
}

/// Of the registry listener, when the operator says nothing.
const PER_ADDRESS: usize = 1024;
const MOST: usize = 4096;

impl Limits {
    /// `per_address`: as the operator wants it, for loopback too.
    pub fn registry(per_address: Option<usize>) -> Limits {
        let connections = affordable(MOST);
        let bounded = |share: usize| share.min(connections);
        Limits {
            connections,
            per_address: bounded(per_address.unwrap_or(PER_ADDRESS)),
            per_loopback: bounded(per_address.unwrap_or(connections)),
        }
    }

    /// Other nodes have few connections each, and any of them may be behind one address.
    pub fn peer() -> Limits {
        Limits::all(affordable(MOST))
    }

    /// Probes and collectors: a few from each of a few addresses.
    pub fn ops() -> Limits {
        Limits {
            connections: 256,
            per_address: 64,
            per_loopback: 64,
        }
    }

    pub(super) fn all(connections: usize) -> Limits {
        Limits {
            connections,
            per_address: connections,
            per_loopback: connections,
        }
    }
}

/// A connection needs a file descriptor, and its request one or two for a blob: so many that a
/// listener that is full leaves enough for the others and for what is on disk. Takes as many
/// descriptors as the system lets this process have.
fn affordable(most: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if let Some(hard) = limit.maximum
        && limit.current != Some(hard)
    {
        limit.current = Some(hard);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "raise the limit of open files");
        }
    }
    let files = getrlimit(Resource::Nofile).current;
    let files = files.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    (files / 4).clamp(1, most)
}

pub struct Clients {
    listener: &'static str,
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_address: HashMap<IpAddr, Client>,
    told: Option<Instant>,
}

struct Client {
    connections: usize,
    requests: Arc<Semaphore>,
}

/// One connection of a client, counted until it is dropped.
pub struct Entered {
    clients: Arc<Clients>,
    key: IpAddr,
    /// Requests that this client may have under way over HTTP/2, on all connections together: one
    /// for each connection that it may have, as with HTTP/1.1.
    pub requests: Arc<Semaphore>,
}

impl Clients {
    pub fn new(listener: &'static str, limits: Limits) -> Clients {
        Clients {
            listener,
            limits,
            table: Mutex::default(),
        }
    }

    /// None when the client has its share already.
    pub fn enter(self: &Arc<Clients>, address: IpAddr) -> Option<Entered> {
        let key = network(address);
        let share = match key.is_loopback() {
            true => self.limits.per_loopback,
            false => self.limits.per_address,
        };
        let mut table = self.table.lock().expect("no panic while held");
        let client = table.by_address.entry(key).or_insert_with(|| Client {
            connections: 0,
            requests: Arc::new(Semaphore::new(share)),
        });
        if client.connections < share {
            client.connections += 1;
            let requests = client.requests.clone();
            return Some(Entered {
                clients: self.clone(),
                key,
                requests,
            });
        }
        let is_news = table.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if is_news {
            table.told = Some(Instant::now());
            tracing::warn!(
                listener = self.listener,
                client = %key,
                share,
                "a client has as many connections as one address may have; more are closed at once (registry.connections_per_address)"
            );
        }
        None
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.clients.table.lock().expect("no panic while held");
        if let Some(client) = table.by_address.get_mut(&self.key) {
            client.connections -= 1;
            if client.connections == 0 {
                table.by_address.remove(&self.key);
            }
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_takes_its_share_and_leaves_the_rest() {
        let limits = Limits {
            connections: 10,
            per_address: 2,
            per_loopback: 3,
        };
        let clients = Arc::new(Clients::new("test", limits));
        let enter = |text| clients.enter(ip(text));
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        let _network = [enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()];
        assert!(enter("2001:db8::3").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        let _local: Vec<_> = (0..3).map(|_| enter("127.0.0.1").unwrap()).collect();
        assert!(enter("127.0.0.1").is_none());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        let table = clients.table.lock().unwrap();
        assert_eq!(table.by_address.len(), 3, "those that left are forgotten");
    }
}
