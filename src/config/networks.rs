//! Lists of networks, as `10.0.0.0/8` or as one address.

use std::net::IpAddr;
use std::str::FromStr;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Networks {
    pub fn parse(items: Vec<String>) -> Result<Networks, String> {
        items
            .iter()
            .map(|item| item.parse())
            .collect::<Result<_, _>>()
            .map(Networks)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An IPv4 address is the same when it comes in the clothes of IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                u128::from(mine.to_bits() ^ other.to_bits()) << 96
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => mine.to_bits() ^ other.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= u32::from(self.bits)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let no =
            || format!("takes networks and addresses, as 10.0.0.0/8 or 192.0.2.7, not {text:?}");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(no)?,
            None => most,
        };
        Ok(Network { address, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_by_its_leading_bits() {
        let all = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"];
        let networks = Networks::parse(all.map(str::to_owned).to_vec()).unwrap();
        let has = |text: &str| networks.contains(text.parse().unwrap());
        for inside in [
            "10.9.8.7",
            "::ffff:10.1.1.1",
            "192.0.2.7",
            "2001:db8:1::1",
            "::1",
        ] {
            assert!(has(inside), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::2", "127.0.0.1"] {
            assert!(!has(outside), "{outside}");
        }
        assert!(
            Networks::parse(vec!["0.0.0.0/0".to_owned()])
                .unwrap()
                .contains([1, 2, 3, 4].into())
        );
        for bad in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "x",
            "/8",
            "::/129",
            "10.0.0.0/-1",
        ] {
            assert!(Networks::parse(vec![bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
