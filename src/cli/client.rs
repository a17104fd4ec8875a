//! Speaking to a cluster: the servers of `--server` are tried in turn until one answers. An
//! answer, also a refusal, is final; only silence leads to the next.

use super::output::Failure;
use super::output::chain;
use crate::api::types::ErrorBody;
use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(5);

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
    /// Account to use
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
    token: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Login {
    None,
    User { name: String, password: String },
    Token(String),
}

pub struct Client {
    http: reqwest::Client,
    servers: Vec<String>,
    login: Login,
}

impl Connection {
    pub fn open(self) -> Result<Client, Failure> {
        let login = self.login()?;
        let servers = self
            .server
            .iter()
            .map(|url| normal(url))
            .collect::<Result<Vec<_>, _>>()?;
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT);
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
            login,
        })
    }

    fn login(&self) -> Result<Login, Failure> {
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
                password,
            });
        }
        match user.split_once(':') {
            Some((name, password)) => Ok(Login::User {
                name: name.to_owned(),
                password: password.to_owned(),
            }),
            None => Err(Failure::refused(
                format!("there is no password for {user}"),
                "give it on stdin with --password-stdin, or as --user NAME:PASSWORD",
            )),
        }
    }
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

    /// A request to one server, with the login.
    pub fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.login {
            Login::None => request,
            Login::User { name, password } => request.basic_auth(name, Some(password)),
            Login::Token(token) => request.bearer_auth(token),
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
        Ok(told) if status == StatusCode::BAD_REQUEST => {
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
            token: token.map(str::to_owned),
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
        let login = connection(Some("ann:a:b"), None).login().unwrap();
        assert_eq!(
            login,
            Login::User {
                name: "ann".to_owned(),
                password: "a:b".to_owned()
            }
        );
        assert_eq!(
            connection(None, Some("t")).login(),
            Ok(Login::Token("t".to_owned()))
        );
        assert!(connection(Some("ann"), None).login().is_err());
    }
}
