//! Speaking to a cluster: the servers of `--server` are tried in turn until one answers. An
//! answer, also a refusal, is final; only silence leads to the next. With `--data-dir` it speaks over
//! the socket in that directory, which needs no password.
//!
//! What must stay true: a credential goes to the server that it was given or stored for, and a
//! stored one to no other.

use super::docker_config;
use super::output::Failure;
use super::output::chain;
use crate::api::types::ErrorBody;
use crate::server::local::socket_in;
use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use std::io::BufRead;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(5);

/// Nothing was done, and asking again does not help.
const REFUSALS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::CONFLICT,
];

/// Where the cluster is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// Registry addresses of the cluster, tried in turn
    #[arg(
        long,
        global = true,
        env = "ROADSTEAD_SERVER",
        default_value = "http://127.0.0.1:5000",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub server: Vec<String>,
    /// Certificates (PEM) to trust instead of the system's
    #[arg(long, global = true, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Account to use; asks for the password when it is not given
    #[arg(
        long,
        global = true,
        value_name = "NAME[:PASSWORD]",
        conflicts_with = "token"
    )]
    user: Option<String>,
    /// Read the password of --user from the first line of stdin
    #[arg(long, global = true)]
    password_stdin: bool,
    /// Token to use
    #[arg(long, global = true, env = "ROADSTEAD_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,
    /// A node's own directory, on its machine: `serve` keeps its data there, `dev` its regions
    /// [default of dev: ./.roadstead-dev]; all others speak to the node that runs on it, without a
    /// password
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub enum Login {
    None,
    User {
        name: String,
        password: SecretString,
    },
    Token(SecretString),
}

pub struct Client {
    http: reqwest::Client,
    servers: Vec<String>,
    /// Of each server.
    logins: Vec<Login>,
}

impl Connection {
    pub fn open(self) -> Result<Client, Failure> {
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT);
        if let Some(dir) = &self.data_dir {
            let socket = socket_in(dir);
            if !socket.exists() {
                return Err(Failure::no_server(
                    format!("no node runs on {}", dir.display()),
                    "start it, or name the data directory of one that runs on this machine",
                ));
            }
            let http = http
                .no_proxy()
                .tls_certs_only([])
                .unix_socket(socket)
                .build();
            let http = http.map_err(|error| Failure::failed("start the client", &error))?;
            // The name says nothing: the socket leads to one node.
            let servers = vec!["http://localhost".to_owned()];
            let logins = vec![Login::None];
            return Ok(Client {
                http,
                servers,
                logins,
            });
        }
        let servers = self.servers()?;
        let logins = match self.login()? {
            Login::None => servers
                .iter()
                .map(|server| docker_config::stored(server))
                .collect(),
            given => vec![given; servers.len()],
        };
        if let Some(path) = &self.cacert {
            let named = format!("read {}", path.display());
            let pem = std::fs::read(path).map_err(|error| Failure::failed(&named, &error))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| Failure::failed(&named, &error))?;
            http = http.tls_certs_only(certificates);
        } else if servers.iter().all(|url| url.starts_with("http://")) {
            // A machine without any certificates can still speak to its own.
            http = http.tls_certs_only([]);
        }
        let http = http
            .build()
            .map_err(|error| Failure::failed("start the client", &error))?;
        Ok(Client {
            http,
            servers,
            logins,
        })
    }

    pub fn servers(&self) -> Result<Vec<String>, Failure> {
        self.server.iter().map(|url| normal(url)).collect()
    }

    /// As it is given on the command line.
    pub fn login(&self) -> Result<Login, Failure> {
        if let Some(token) = &self.token {
            return Ok(Login::Token(token.clone()));
        }
        let Some(user) = &self.user else {
            if self.password_stdin {
                let next = "name the account with --user NAME";
                return Err(Failure::refused(
                    "--password-stdin is of no use without --user",
                    next,
                ));
            }
            return Ok(Login::None);
        };
        if self.password_stdin {
            let mut password = String::new();
            let read = std::io::stdin().lock().read_line(&mut password);
            read.map_err(|error| Failure::failed("read the password", &error))?;
            let password = password.trim_end_matches(['\n', '\r']).to_owned();
            return Ok(Login::User {
                name: user.clone(),
                password: password.into(),
            });
        }
        match user.split_once(':') {
            Some((name, password)) => Ok(Login::User {
                name: name.to_owned(),
                password: password.to_owned().into(),
            }),
            None => Ok(Login::User {
                name: user.clone(),
                password: ask_password(&format!("Password of {user}: "))?,
            }),
        }
    }
}

/// Typed, not shown.
pub fn ask_password(prompt: &str) -> Result<SecretString, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(
            "there is no password, and nobody to ask for it",
            "give it on stdin with --password-stdin, or as --user NAME:PASSWORD",
        ));
    }
    let typed = rpassword::prompt_password(prompt);
    let typed = typed.map_err(|error| Failure::failed("read the password", &error))?;
    Ok(typed.into())
}

/// With a scheme, without a slash at the end.
fn normal(url: &str) -> Result<String, Failure> {
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    match reqwest::Url::parse(&full) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => {
            Ok(full.trim_end_matches('/').to_owned())
        }
        _ => Err(Failure::refused(
            format!("{url:?} is not the address of a server"),
            "write it as http://127.0.0.1:5000",
        )),
    }
}

impl Client {
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    pub fn with_login(mut self, login: Login) -> Client {
        self.logins.fill(login);
        self
    }

    /// A request to one server, with the login for it.
    pub fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        let own = self.servers.iter().position(|server| {
            let rest = url.strip_prefix(server.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        match own.map_or(&Login::None, |own| &self.logins[own]) {
            Login::None => request,
            Login::User { name, password } => {
                request.basic_auth(name, Some(password.expose_secret()))
            }
            Login::Token(token) => request.bearer_auth(token.expose_secret()),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<T, Failure> {
        self.call(Method::GET, path, None, wait).await
    }

    /// What is asked may be asked twice: a server that falls silent may have done it.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        wait: Duration,
    ) -> Result<T, Failure> {
        let mut silent = Vec::new();
        for server in &self.servers {
            let mut request = self
                .request(method.clone(), &format!("{server}{path}"))
                .timeout(wait);
            if let Some(body) = body {
                request = request.json(body);
            }
            match request.send().await {
                Ok(response) => return answer(server, response).await,
                Err(error) => silent.push(format!("{server}: {}", cause(&error))),
            }
        }
        Err(Failure::no_server(
            format!("no server answered ({})", silent.join("; ")),
            "start one, or name one that runs with --server URL[,URL…]",
        ))
    }
}

async fn answer<T: DeserializeOwned>(server: &str, response: Response) -> Result<T, Failure> {
    let status = response.status();
    let body = response.bytes().await;
    let body = body.map_err(|error| Failure::failed(&format!("read from {server}"), &error))?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|_| {
            Failure::limit(
                format!("{server} did not answer as this version of roadstead expects"),
                "check that --server names a roadstead registry, and compare `roadstead version`",
            )
        });
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(told) if REFUSALS.contains(&status) => {
            Err(Failure::refused(told.error.message, told.error.next))
        }
        Ok(told) => Err(Failure::limit(
            format!("{server} answered {status}: {}", told.error.message),
            told.error.next,
        )),
        Err(_) => Err(Failure::limit(
            format!("{server} answered {status}"),
            "check that --server names the registry listener of a roadstead node",
        )),
    }
}

/// The innermost cause says most: `Connection refused`.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let text = chain(error);
    text.rsplit(": ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(user: Option<&str>, token: Option<&str>) -> Connection {
        Connection {
            server: vec!["127.0.0.1:5000/".to_owned()],
            cacert: None,
            user: user.map(str::to_owned),
            password_stdin: false,
            token: token.map(|token| token.to_owned().into()),
            data_dir: None,
        }
    }

    #[test]
    fn a_server_needs_no_scheme() {
        let client = connection(None, None).open().unwrap();
        assert_eq!(client.servers(), ["http://127.0.0.1:5000"]);
        assert!(normal("ftp://x").is_err());
        assert!(normal("http://").is_err());
    }

    #[test]
    fn a_password_may_contain_a_colon() {
        match connection(Some("ann:a:b"), None).login().unwrap() {
            Login::User { name, password } => {
                assert_eq!((name.as_str(), password.expose_secret()), ("ann", "a:b"));
            }
            other => panic!("{other:?}"),
        }
        let token = connection(None, Some("hunter2")).login().unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }

    #[test]
    fn a_credential_goes_to_the_servers_that_are_named_and_to_no_other() {
        let client = connection(Some("ann:secret"), None).open().unwrap();
        let header = |url: &str| {
            let request = client.request(Method::GET, url).build().unwrap();
            request.headers().contains_key("authorization")
        };
        assert!(header("http://127.0.0.1:5000/v2/"));
        assert!(!header("http://127.0.0.1:50001/v2/"));
        assert!(!header("http://127.0.0.2:5000/v2/"));
    }
}
