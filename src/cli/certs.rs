//! `roadstead certs`: a CA of one's own, certificates of nodes that it signs, and a look at what
//! there is. None of it needs a server; the key of the CA belongs on no node.

use super::output;
use super::output::Failure;
use super::output::Format;
use super::serve::refuse;
use crate::certs::Authority;
use crate::certs::CertFiles;
use crate::certs::FileError;
use crate::certs::Material;
use crate::certs::Names;
use crate::certs::PeerFiles;
use crate::certs::PeerTls;
use crate::certs::Report;
use crate::certs::certificate_pem;
use crate::certs::certificates;
use crate::certs::certified;
use crate::certs::refusal;
use crate::certs::write_private;
use crate::config::Draft;
use crate::topology::RegionName;
use secrecy::ExposeSecret;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use time::OffsetDateTime;
use tokio::net::TcpStream;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Less is as good as none: time to act is over.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a CA: ca.pem for every node, ca-key.pem for a safe place
    InitCa {
        /// Where both are written
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Sign a certificate for a node: ca.pem, cert.pem and key.pem for [peer] of its configuration
    Issue {
        /// Where ca.pem and ca-key.pem are
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The region that the node is in
        #[arg(long)]
        region: RegionName,
        /// A further DNS name or IP address; may be repeated
        #[arg(long, value_name = "NAME")]
        san: Vec<String>,
        /// How long it is good
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Where they are written; an older certificate there is replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Say whose certificates these are and how long they are good; exit code 1 when they are bad,
    /// or good for less than 7 days
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// What a node is configured with: [peer] and [registry], or what its cluster issued
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ca", "cert", "key"])]
    config: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
    /// Call this peer listener with them: whether each side takes the other's
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
}

pub async fn run(command: Command, format: Format) -> Result<(), Failure> {
    match command {
        Command::InitCa { out } => init_ca(&out, format),
        Command::Issue {
            ca,
            region,
            san,
            days,
            out,
        } => {
            let names = Names {
                region,
                extra: san,
                bound: None,
            };
            issue(&ca, &names, DAY * days, &out, format)
        }
        Command::Check(args) => check(args, format).await,
    }
}

fn told(error: FileError) -> Failure {
    let message = output::chain(&error);
    Failure::refused(message, "correct it, then try again")
}

fn not_made(error: rcgen::Error) -> Failure {
    Failure::failed("make a certificate", &error)
}

fn create_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|error| Failure::failed(&format!("create {}", path.display()), &error))
}

fn init_ca(out: &Path, format: Format) -> Result<(), Failure> {
    let (cert, key) = (out.join("ca.pem"), out.join("ca-key.pem"));
    for path in [&cert, &key] {
        if path.exists() {
            return Err(Failure::refused(
                format!("{} exists already", path.display()),
                "choose another directory: nodes trust the CA that is there",
            ));
        }
    }
    create_dir(out)?;
    let authority = Authority::create("Roadstead CA").map_err(not_made)?;
    write_private(&key, authority.key().expose_secret().as_bytes()).map_err(told)?;
    let pem = certificate_pem(authority.certificate());
    write_private(&cert, pem.as_bytes()).map_err(told)?;
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    match format {
        Format::Json => output::json(&serde_json::json!({"ca": cert, "key": key})),
        Format::Table => output::print(&format!(
            "{cert}  give it to every node\n{key}  keep it safe, and on no node: whoever has it can join\n\n\
             next: roadstead certs issue --ca {} --region REGION --out DIR\n",
            out.display()
        )),
    }
}

fn issue(
    ca: &Path,
    names: &Names,
    lifetime: Duration,
    out: &Path,
    format: Format,
) -> Result<(), Failure> {
    let certificate = certificates(&ca.join("ca.pem"))
        .map_err(told)?
        .swap_remove(0);
    let path = ca.join("ca-key.pem");
    let key = std::fs::read_to_string(&path).map_err(|source| {
        told(FileError::Read {
            path: path.clone(),
            source,
        })
    })?;
    let authority = Authority::load(certificate, key.into()).map_err(|error| {
        told(FileError::Unusable {
            path,
            why: format!("{error}; give the directory that `roadstead certs init-ca` wrote"),
        })
    })?;
    let (certificate, key) = authority.issue(names, lifetime).map_err(not_made)?;
    create_dir(out)?;
    let files = PeerFiles {
        ca: out.join("ca.pem"),
        own: CertFiles {
            cert: out.join("cert.pem"),
            key: out.join("key.pem"),
        },
    };
    // A bundle that is there stays: two CAs are trusted while one takes the place of the other.
    let mut trusted = match files.ca.exists() {
        true => certificates(&files.ca).map_err(told)?,
        false => Vec::new(),
    };
    if !trusted.contains(authority.certificate()) {
        trusted.push(authority.certificate().clone());
        let bundle: String = trusted.iter().map(certificate_pem).collect();
        write_private(&files.ca, bundle.as_bytes()).map_err(told)?;
    }
    write_private(&files.own.key, key.expose_secret().as_bytes()).map_err(told)?;
    let pem = certificate_pem(&certificate);
    write_private(&files.own.cert, pem.as_bytes()).map_err(told)?;
    Material::load(&files).map_err(told)?;
    let path = |path: &Path| path.display().to_string();
    let (ca, cert, key) = (path(&files.ca), path(&files.own.cert), path(&files.own.key));
    match format {
        Format::Json => output::json(&serde_json::json!({"ca": ca, "cert": cert, "key": key})),
        Format::Table => output::print(&format!(
            "a certificate for {}, good until {}; in the node's configuration:\n\n[peer]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n",
            names.region,
            date(SystemTime::now() + lifetime)
        )),
    }
}

fn date(time: SystemTime) -> String {
    OffsetDateTime::from(time).date().to_string()
}

/// One certificate that was looked at.
#[derive(serde::Serialize)]
struct Seen {
    what: String,
    names: Vec<String>,
    good_until: String,
    days_left: u64,
    /// What is wrong with it.
    problems: Vec<String>,
}

fn see(what: String, leaf: &[u8], problem: Option<String>) -> Seen {
    let mut problems: Vec<String> = problem.into_iter().collect();
    let Some(report) = Report::parse(leaf) else {
        problems.push("it is not an X.509 certificate".to_owned());
        return Seen {
            what,
            names: Vec::new(),
            good_until: String::new(),
            days_left: 0,
            problems,
        };
    };
    let left = report.not_after.duration_since(SystemTime::now());
    let left = left.unwrap_or_default();
    if left.is_zero() {
        problems.push("it has expired".to_owned());
    } else if left < SOON {
        problems.push("it is good for less than 7 days: replace it now".to_owned());
    }
    if report.not_before > SystemTime::now() {
        problems.push(format!(
            "it is good only from {}: is the clock right?",
            date(report.not_before)
        ));
    }
    let mut names = report.dns_names;
    names.extend(report.ip_addresses);
    names.extend(report.uris);
    Seen {
        what,
        names,
        good_until: date(report.not_after),
        days_left: left.as_secs() / DAY.as_secs(),
        problems,
    }
}

/// Chain, key, region and both usages; each CA.
fn see_peer(files: &PeerFiles) -> Result<Vec<Seen>, Failure> {
    let chain = certificates(&files.own.cert).map_err(told)?;
    let problem = Material::load(files)
        .err()
        .map(|error| output::chain(&error));
    let what = format!("to other nodes: {}", files.own.cert.display());
    let mut seen = vec![see(what, &chain[0], problem)];
    for ca in certificates(&files.ca).map_err(told)? {
        let subject = Report::parse(&ca).map_or(String::new(), |report| report.subject);
        seen.push(see(
            format!("CA {subject}: {}", files.ca.display()),
            &ca,
            None,
        ));
    }
    Ok(seen)
}

fn see_registry(files: &CertFiles) -> Result<Seen, Failure> {
    let chain = certificates(&files.cert).map_err(told)?;
    let mut problem = certified(files).err().map(|error| output::chain(&error));
    if Report::parse(&chain[0]).is_some_and(|report| !report.for_servers) {
        problem = Some("it is not for servers".to_owned());
    }
    Ok(see(
        format!("to clients: {}", files.cert.display()),
        &chain[0],
        problem,
    ))
}

/// What the configuration of a node names: for other nodes, and for clients.
fn configured(path: &Path) -> Result<(Option<PeerFiles>, Option<CertFiles>), Failure> {
    let content = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("read {}: {error}", path.display());
        Failure::refused(message, "name a file that exists and can be read")
    })?;
    let mut draft = Draft::default();
    let mut problems = draft.add_file(path, &content);
    problems.extend(draft.add_environment(std::env::vars_os()));
    if !problems.is_empty() {
        return Err(refuse(&problems));
    }
    let config = draft.check(&path.display().to_string());
    let config = config.map_err(|problems| refuse(&problems))?;
    let issued = crate::certs::Store::new(&config.data_dir);
    let peer = config
        .peer_tls
        .or_else(|| issued.is_filled().then(|| issued.files()));
    Ok((peer, config.registry_tls))
}

async fn check(args: CheckArgs, format: Format) -> Result<(), Failure> {
    let (peer, registry) = match (args.config, args.ca, args.cert, args.key) {
        (Some(path), ..) => configured(&path)?,
        (None, Some(ca), Some(cert), Some(key)) => {
            let own = CertFiles { cert, key };
            (Some(PeerFiles { ca, own }), None)
        }
        _ => {
            return Err(Failure::refused(
                "there is nothing to check",
                "give --config FILE, or --ca, --cert and --key",
            ));
        }
    };
    let mut seen = Vec::new();
    if let Some(files) = &peer {
        seen.extend(see_peer(files)?);
    }
    if let Some(files) = &registry {
        seen.push(see_registry(files)?);
    }
    if let Some(address) = &args.connect {
        let Some(files) = &peer else {
            return Err(Failure::refused(
                "there is no certificate to connect with",
                "set peer.ca, peer.cert and peer.key, or give --ca, --cert and --key",
            ));
        };
        seen.push(call(files, address).await?);
    }
    if seen.is_empty() {
        return Err(Failure::refused(
            "this configuration names no certificates",
            "nodes on loopback need none; docs/certificates.md says how others get theirs",
        ));
    }
    match format {
        Format::Json => output::json(&serde_json::json!({"certificates": seen}))?,
        Format::Table => output::print(&render(&seen))?,
    }
    let bad = seen.iter().filter(|seen| !seen.problems.is_empty()).count();
    match bad {
        0 => Ok(()),
        _ => Err(Failure::limit(
            format!("{bad} of {} certificates need attention", seen.len()),
            "docs/certificates.md says how each is replaced",
        )),
    }
}

/// Calls a peer listener as another node would.
async fn call(files: &PeerFiles, address: &str) -> Result<Seen, Failure> {
    let what = format!("shown by {address}");
    let bad = |why: String| Seen {
        what: what.clone(),
        names: Vec::new(),
        good_until: String::new(),
        days_left: 0,
        problems: vec![why],
    };
    let material = match Material::load(files) {
        Ok(material) => material,
        Err(error) => return Ok(bad(format!("it was not called: {error}"))),
    };
    let tls = PeerTls::new(material).map_err(|error| Failure::failed("start TLS", &error))?;
    let shown = async { tls.look(TcpStream::connect(address).await?).await };
    match tokio::time::timeout(CONNECT, shown).await {
        Ok(Ok(leaf)) => Ok(see(what, &leaf, None)),
        Ok(Err(error)) => {
            let why = refusal(&error).unwrap_or_else(|| error.to_string());
            Ok(bad(why))
        }
        Err(_) => Ok(bad(format!("no answer within {CONNECT:?}"))),
    }
}

fn render(seen: &[Seen]) -> String {
    let rows = seen.iter().map(|seen| {
        let state = match seen.problems.is_empty() {
            true => "good".to_owned(),
            false => seen.problems.join("; "),
        };
        let until = match seen.good_until.is_empty() {
            true => String::new(),
            false => format!("{} ({} days)", seen.good_until, seen.days_left),
        };
        vec![seen.what.clone(), seen.names.join(" "), until, state]
    });
    output::table(&["CERTIFICATE", "NAMES", "UNTIL", ""], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            region: "r1".parse().unwrap(),
            extra: vec!["r1.example".to_owned()],
            bound: None,
        }
    }

    #[tokio::test]
    async fn what_is_issued_is_found_good_until_it_is_old_or_mixed_up() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("r1"));
        init_ca(&ca, Format::Json).unwrap();
        assert!(
            init_ca(&ca, Format::Json)
                .unwrap_err()
                .message()
                .contains("exists already")
        );
        issue(&ca, &names(), DAY * 30, &out, Format::Json).unwrap();
        let files = |dir: &Path| CheckArgs {
            config: None,
            ca: Some(dir.join("ca.pem")),
            cert: Some(dir.join("cert.pem")),
            key: Some(dir.join("key.pem")),
            connect: None,
        };
        check(files(&out), Format::Table).await.unwrap();
        let connect = Some("127.0.0.1:1".to_owned());
        let unreachable = CheckArgs {
            connect,
            ..files(&out)
        };
        assert!(check(unreachable, Format::Json).await.is_err());

        let other = dir.path().join("r2");
        issue(&ca, &names(), DAY, &other, Format::Json).unwrap();
        let why = check(files(&other), Format::Json).await.unwrap_err();
        assert!(why.message().contains("1 of 2 certificates"), "{why:?}");
        let mixed = CheckArgs {
            key: Some(other.join("key.pem")),
            ..files(&out)
        };
        assert!(check(mixed, Format::Json).await.is_err());

        // A second CA is added to the bundle; the first stays in it.
        let next = dir.path().join("next");
        init_ca(&next, Format::Json).unwrap();
        issue(&next, &names(), DAY * 30, &out, Format::Json).unwrap();
        assert_eq!(certificates(&out.join("ca.pem")).unwrap().len(), 2);
        check(files(&out), Format::Json).await.unwrap();
    }
}
