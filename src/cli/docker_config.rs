//! Credentials as docker, podman and others keep them: in a helper where the configuration names one,
//! else in `config.json`, which only its owner may read. So one login serves all tools.
//!
//! What must stay true: what others have in that file stays; a file that cannot be read is not
//! written over.

use super::client::Login;
use super::output::Failure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

/// `host:port`, as the tools name a registry.
pub fn host(server: &str) -> &str {
    server.split_once("://").map_or(server, |(_, host)| host)
}

fn place() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(dir.join("config.json"))
}

fn read(path: &PathBuf) -> Result<Map<String, Value>, Failure> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(Failure::failed(&format!("read {}", path.display()), &error)),
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map_err(|error| Failure::failed(&format!("read {}", path.display()), &error))
}

/// The program that keeps the credentials of this registry.
fn helper(config: &Map<String, Value>, host: &str) -> Option<String> {
    let of_host = config
        .get("credHelpers")
        .and_then(|helpers| helpers.get(host));
    let name = of_host.or_else(|| config.get("credsStore"))?.as_str()?;
    let is_name = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (is_name && !name.is_empty()).then(|| format!("docker-credential-{name}"))
}

/// What a helper answers; None: it has nothing.
fn ask_helper(program: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let named = format!("run the credential helper {program}");
    let child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|error| Failure::failed(&named, &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has answered already.
        let _ = stdin.write_all(input);
    }
    let answer = child
        .wait_with_output()
        .map_err(|error| Failure::failed(&named, &error))?;
    Ok(answer.status.success().then_some(answer.stdout))
}

/// The credential that is kept for the server. A file or a helper of others that does not work is no
/// reason not to ask a server.
pub fn stored(server: &str) -> Login {
    let config = place().and_then(|path| read(&path).ok());
    let found = config.and_then(|config| {
        let host = host(server);
        in_file(&config, host).or_else(|| in_helper(&helper(&config, host)?, host))
    });
    found.unwrap_or(Login::None)
}

fn in_helper(program: &str, host: &str) -> Option<Login> {
    let answer = ask_helper(program, "get", host.as_bytes()).ok()??;
    let answer: Value = serde_json::from_slice(&answer).ok()?;
    let (name, secret) = (answer["Username"].as_str()?, answer["Secret"].as_str()?);
    // Docker's word for a refresh token, which only a registry's token endpoint takes.
    (name != "<token>").then(|| Login::User {
        name: name.to_owned(),
        password: secret.to_owned().into(),
    })
}

fn in_file(config: &Map<String, Value>, host: &str) -> Option<Login> {
    let encoded = config.get("auths")?.get(host)?.get("auth")?.as_str()?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    Some(Login::User {
        name: name.to_owned(),
        password: password.to_owned().into(),
    })
}

fn entry(name: &str, secret: &SecretString) -> Value {
    let pair = format!("{name}:{}", secret.expose_secret());
    json!({"auth": STANDARD.encode(pair)})
}

/// The document that docker and Kubernetes read: for these servers, with this credential.
pub fn document(servers: &[String], name: &str, secret: &SecretString) -> Value {
    let auths = servers
        .iter()
        .map(|server| (host(server).to_owned(), entry(name, secret)));
    json!({"auths": auths.collect::<Map<String, Value>>()})
}

/// Keeps it; where that is.
pub fn store(server: &str, name: &str, secret: &SecretString) -> Result<String, Failure> {
    let path = place().ok_or_else(|| {
        Failure::refused(
            "there is no home directory to keep it in",
            "set HOME or DOCKER_CONFIG",
        )
    })?;
    let mut config = read(&path)?;
    let host = host(server);
    if let Some(program) = helper(&config, host) {
        let given = json!({"ServerURL": host, "Username": name, "Secret": secret.expose_secret()});
        return match ask_helper(&program, "store", given.to_string().as_bytes())? {
            Some(_) => Ok(format!("in {program}")),
            None => Err(Failure::limit(
                format!("{program} did not take the credential"),
                "look whether it works, or take credsStore out of the configuration",
            )),
        };
    }
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        let told = format!("auths in {} is no object", path.display());
        return Err(Failure::refused(told, "mend the file"));
    };
    auths.insert(host.to_owned(), entry(name, secret));
    write(&path, &config)?;
    Ok(format!("in {}", path.display()))
}

/// Forgets it; false: there was none.
pub fn erase(server: &str) -> Result<bool, Failure> {
    let Some(path) = place() else {
        return Ok(false);
    };
    let mut config = read(&path)?;
    let host = host(server);
    let mut was_there = false;
    if let Some(program) = helper(&config, host) {
        was_there = ask_helper(&program, "erase", host.as_bytes())?.is_some();
    }
    let auths = config.get_mut("auths").and_then(Value::as_object_mut);
    if auths.is_some_and(|auths| auths.remove(host).is_some()) {
        write(&path, &config)?;
        was_there = true;
    }
    Ok(was_there)
}

/// All at once, readable by its owner only.
fn write(path: &PathBuf, config: &Map<String, Value>) -> Result<(), Failure> {
    let failed = |error| Failure::failed(&format!("write {}", path.display()), &error);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let text = serde_json::to_vec_pretty(config).map_err(|e| Failure::failed("write JSON", &e))?;
    let beside = path.with_extension(format!("json.{}", std::process::id()));
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside);
    let written = made.and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_read_as_other_tools_wrote_it() {
        let config = json!({
            "auths": {"r:5000": {"auth": STANDARD.encode("ann:a:b")}, "x": {}},
            "credsStore": "pass",
            "credHelpers": {"h": "ecr-login", "bad": "../sh"},
        });
        let config = config.as_object().unwrap();
        match in_file(config, "r:5000") {
            Some(Login::User { name, password }) => {
                assert_eq!((name.as_str(), password.expose_secret()), ("ann", "a:b"));
            }
            _ => panic!("it is there"),
        }
        assert!(in_file(config, "x").is_none() && in_file(config, "y").is_none());
        assert_eq!(helper(config, "h").unwrap(), "docker-credential-ecr-login");
        assert_eq!(helper(config, "r:5000").unwrap(), "docker-credential-pass");
        assert_eq!(helper(config, "bad"), None);
        assert_eq!(host("https://r:5000"), "r:5000");
    }

    #[test]
    fn what_kubernetes_reads_names_each_server() {
        let servers = ["https://a".to_owned(), "http://b:5000".to_owned()];
        let document = document(&servers, "ci", &"s".to_owned().into());
        assert_eq!(document["auths"]["b:5000"]["auth"], STANDARD.encode("ci:s"));
        assert_eq!(document["auths"].as_object().unwrap().len(), 2);
    }
}
