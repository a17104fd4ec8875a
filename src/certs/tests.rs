//! Certificates as the parts that use them see them: over real connections, and out of real files.

use super::*;
use crate::tasks::Tasks;
use crate::topology::NodeId;
use crate::topology::RegionName;
use crate::topology::Role;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use secrecy::SecretBox;
use std::io;
use std::path::Path;
use std::time::SystemTime;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn names(name: &str, node: Option<u64>) -> Names {
    Names {
        region: region(name),
        extra: Vec::new(),
        bound: node.map(|node| Bound {
            cluster_id: "c".to_owned(),
            lineage: "l".to_owned(),
            node: NodeId(node),
        }),
    }
}

/// Files of a node that `authority` signed for.
fn issued(authority: &Authority, names: &Names, lifetime: Duration, dir: &Path) -> PeerFiles {
    let (certificate, key) = authority.issue(names, lifetime).unwrap();
    write(
        dir,
        &[authority.certificate()],
        &certificate,
        key.expose_secret(),
    )
}

fn write(
    dir: &Path,
    ca: &[&CertificateDer<'_>],
    certificate: &CertificateDer<'_>,
    key: &str,
) -> PeerFiles {
    let files = PeerFiles {
        ca: dir.join("ca.pem"),
        own: CertFiles {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        },
    };
    let bundle: String = ca.iter().map(|ca| certificate_pem(ca)).collect();
    write_private(&files.ca, bundle.as_bytes()).unwrap();
    write_private(&files.own.cert, certificate_pem(certificate).as_bytes()).unwrap();
    write_private(&files.own.key, key.as_bytes()).unwrap();
    files
}

fn tls(authority: &Authority, names: &Names) -> PeerTls {
    let dir = tempfile::tempdir().unwrap();
    let files = issued(authority, names, DAY, dir.path());
    PeerTls::new(Material::load(&files).unwrap()).unwrap()
}

/// One connection: what each side makes of it.
async fn meet(
    server: &PeerTls,
    client: &PeerTls,
    target: Option<(NodeId, RegionName)>,
) -> (io::Result<Wire>, io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, wire) = server.accept(stream).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok(wire)
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = client.connect(stream, target).await?;
        stream.read_exact(&mut [0]).await.map(drop)
    };
    tokio::join!(accepting, connecting)
}

#[test]
fn a_certificate_says_whose_it_is_and_until_when() {
    let authority = Authority::create("test").unwrap();
    let extra = vec!["r1.example".to_owned(), "192.0.2.7".to_owned()];
    let names = Names {
        extra,
        ..names("r1", Some(7))
    };
    let key = new_key().unwrap();
    let asked = request(&key).unwrap();
    let certificate = authority.sign(&asked, &names, DAY).unwrap();
    let found = PeerCertificate::parse(&certificate).unwrap();
    assert_eq!(
        (&found.region, found.node()),
        (&names.region, Some(NodeId(7)))
    );
    assert_eq!(found.bound, names.bound);
    let now = SystemTime::now();
    assert!(found.left(now) > DAY - Duration::from_secs(60) && found.left(now) <= DAY);
    assert!(!found.is_to_be_renewed(now) && found.is_to_be_renewed(now + DAY * 3 / 4));
    let report = Report::parse(&certificate).unwrap();
    assert_eq!(report.dns_names, ["r1.roadstead.internal", "r1.example"]);
    assert_eq!(report.ip_addresses, ["192.0.2.7"]);
    assert!(report.for_clients && report.for_servers && !report.is_ca);
    // The hash is of the key, not of the request.
    assert_eq!(key_hash(&asked), key_hash(&request(&key).unwrap()));
    assert_ne!(
        key_hash(&asked),
        key_hash(&request(&new_key().unwrap()).unwrap())
    );
    let mut forged = asked.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(authority.sign(&forged, &names, DAY).is_err());
}

#[test]
fn a_certificate_without_a_region_or_with_two_is_nobodys() {
    let authority = Authority::create("test").unwrap();
    let told = |der: &[u8]| PeerCertificate::parse(der).unwrap_err().to_string();
    assert!(told(b"no").contains("not an X.509"));
    assert!(told(authority.certificate()).contains("names no region"));
    let two = Names {
        extra: vec!["r2.roadstead.internal".to_owned()],
        ..names("r1", None)
    };
    let (certificate, _) = authority.issue(&two, DAY).unwrap();
    assert!(told(&certificate).contains("more than one"));
    for bad in ["roadstead://c/l/7", "roadstead://c/l/node/x", "spiffe://c"] {
        assert!(bad.parse::<Bound>().is_err(), "{bad}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create("test").unwrap();
    let files = issued(&authority, &names("r1", None), DAY, dir.path());
    Material::load(&files).unwrap();
    let told = |files: &PeerFiles| Material::load(files).err().unwrap().to_string();

    let (_, other_key) = authority.issue(&names("r1", None), DAY).unwrap();
    let other = dir.path().join("other.pem");
    write_private(&other, other_key.expose_secret().as_bytes()).unwrap();
    let with = |cert: &Path, key: &Path, ca: &Path| PeerFiles {
        ca: ca.to_owned(),
        own: CertFiles {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
    };
    let (cert, key, ca) = (&files.own.cert, &files.own.key, &files.ca);
    assert!(told(&with(cert, &other, ca)).contains("does not belong to the certificate"));
    assert!(told(&with(cert, cert, ca)).contains("no private key"));
    assert!(told(&with(key, key, ca)).contains("no certificate"));
    assert!(told(&with(cert, key, cert)).contains("not the certificate of a CA"));
    assert!(told(&with(cert, key, &dir.path().join("none"))).contains("none: give a file"));

    let another = Authority::create("another").unwrap();
    write_private(ca, certificate_pem(another.certificate()).as_bytes()).unwrap();
    assert!(told(&files).contains("CN=another"), "{}", told(&files));
    // Both CAs: while one takes the place of the other.
    write(
        dir.path(),
        &[another.certificate(), authority.certificate()],
        &certificates(cert).unwrap()[0],
        std::str::from_utf8(&std::fs::read(key).unwrap()).unwrap(),
    );
    Material::load(&files).unwrap();

    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn nodes_know_each_other_by_their_certificates() {
    let authority = Authority::create("test").unwrap();
    let r1 = tls(&authority, &names("r1", Some(1)));
    let r2 = tls(&authority, &names("r2", Some(2)));
    let at = |node: u64, name: &str| Some((NodeId(node), region(name)));
    for target in [at(1, "r1"), None] {
        let (served, called) = meet(&r1, &r2, target).await;
        called.unwrap();
        match served.unwrap() {
            Wire::Tls(Some(caller)) => assert_eq!(caller.region, region("r2")),
            other => panic!("{other:?}"),
        }
    }
    let told =
        |(_, called): (io::Result<Wire>, io::Result<()>)| refusal(&called.unwrap_err()).unwrap();
    let why = told(meet(&r1, &r2, at(1, "r9")).await);
    assert!(
        why.contains("of region r1") && why.contains("region r9 was expected"),
        "{why}"
    );
    let why = told(meet(&r1, &r2, at(9, "r1")).await);
    assert!(why.contains("node 0000000000000009 was expected"), "{why}");

    let other = Authority::create("another").unwrap();
    let stranger = tls(&other, &names("r1", Some(1)));
    let why = told(meet(&stranger, &r2, at(1, "r1")).await);
    assert!(
        why.contains("not signed by a CA") && why.contains("CN=test"),
        "{why}"
    );
    // It trusts the server, which does not trust it.
    stranger.set(Material::pinned(authority.certificate().clone()).unwrap());
    let (served, _) = meet(&r1, &stranger, None).await;
    assert!(matches!(served.unwrap(), Wire::Tls(None)));
}

#[tokio::test]
async fn what_a_node_shows_is_replaced_for_the_next_connection_and_bad_files_are_not_taken() {
    let tasks = Tasks::new();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create("test").unwrap();
    let files = issued(&authority, &names("r1", Some(1)), DAY, dir.path());
    let tls = PeerTls::new(Material::load(&files).unwrap()).unwrap();
    tls.watch(files.clone(), false, &tasks);
    let until = tls.material().leaf().unwrap().not_after;
    write_private(&files.own.key, b"broken").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(tls.material().leaf().unwrap().not_after, until);
    issued(&authority, &names("r1", Some(1)), DAY * 9, dir.path());
    let renewed = async {
        while tls.material().leaf().unwrap().not_after == until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .unwrap();
    tasks.stop_and_wait().await;
}

#[test]
fn a_join_token_says_the_same_after_a_trip_through_a_terminal() {
    let token = JoinToken {
        id: "i".to_owned(),
        secret: SecretBox::new(Box::new([7; 32])),
        region: region("r2"),
        role: Role::Learner,
        expires_at_ms: 5,
        ca: vec![1, 2],
        cluster_id: "c".to_owned(),
        lineage: "l".to_owned(),
    };
    let word = token.expose();
    assert!(word.starts_with("rsj_") && !word.contains(['+', '/', '=']));
    let read: JoinToken = format!(" {word}\n").parse().unwrap();
    assert_eq!(read.expose(), word);
    assert!(!format!("{token:?}").contains('7'), "{token:?}");
    for bad in ["", "rsj_", "rsj_!", &word[..word.len() - 40], &word[4..]] {
        assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
    }
}

#[test]
fn the_name_of_a_node_is_read_as_it_was_made() {
    let (node, r1) = (NodeId(0xab), region("eu-west"));
    let name = host(node, &r1);
    assert_eq!(name, "00000000000000ab.eu-west.roadstead.internal");
    assert_eq!(in_host(&name), Some((node, r1)));
    for bad in [
        "roadstead.internal",
        "eu-west.roadstead.internal",
        "a.b",
        "",
    ] {
        assert_eq!(in_host(bad), None, "{bad}");
    }
}
