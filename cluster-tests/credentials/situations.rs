//! What happens to people with credentials: the list of it.

use super::trial::{Account, Trial, call, known, refused, refused_everywhere, token, wait, words};
use crate::harness::client::{Client, Image};
use crate::harness::user::User;
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};

type Told = Result<(), String>;
type Check = fn(&Trial<'_>) -> Told;

pub struct Situation {
    pub name: &'static str,
    pub place: Place,
    pub check: Check,
}

#[derive(PartialEq, Eq)]
pub enum Place {
    Anywhere,
    /// With all regions: where one of three is left, it takes no pushes and changes no accounts.
    Together,
    Alone,
}

const fn anywhere(name: &'static str, check: Check) -> Situation {
    let place = Place::Anywhere;
    Situation { name, place, check }
}

const fn together(name: &'static str, check: Check) -> Situation {
    let place = Place::Together;
    Situation { name, place, check }
}

const fn alone(name: &'static str, check: Check) -> Situation {
    let place = Place::Alone;
    Situation { name, place, check }
}

pub const ALL: [Situation; 20] = [
    anywhere("token: login and private pull", |trial| {
        login_and_pull(trial, &trial.setting.robot)
    }),
    anywhere("password: login and private pull", |trial| {
        login_and_pull(trial, &trial.setting.person)
    }),
    anywhere("login of another region", |trial| {
        let from = trial.registry(trial.early_at);
        let user = trial.early.moved(&from, &trial.registry(trial.far));
        trial.pull(&user, trial.far, &trial.setting.app, "team/app")
    }),
    together("token: push here, pull elsewhere", |trial| {
        there_and_back(trial, &trial.setting.robot)
    }),
    together("password: push here, pull elsewhere", |trial| {
        there_and_back(trial, &trial.setting.person)
    }),
    anywhere("public pull without login", public_pull),
    anywhere("public pull by one without rights there", |trial| {
        let user = trial.login(trial.far, &trial.setting.stranger)?;
        trial.pull(&user, trial.far, &trial.setting.app, "pub/app")
    }),
    together("public pull, then login and push", public_pull_then_push),
    together("push to what is public without login", |trial| {
        let image = trial.setting.layout("vandal");
        refused(trial.push(&User::new(), &image, "pub/app"))
    }),
    anywhere("private pull without login", |trial| {
        is_hidden_from(trial, &User::new())
    }),
    anywhere("private pull by one without rights there", |trial| {
        is_hidden_from(trial, &trial.login(trial.far, &trial.setting.stranger)?)
    }),
    anywhere("wrong password", wrong_password),
    anywhere("expired token", |trial| {
        refused_everywhere(trial.cluster, &trial.setting.expired);
        trial.is_shut_out(&trial.setting.expired)
    }),
    anywhere("revoked token", |trial| {
        trial.is_shut_out(&trial.setting.revoked)
    }),
    together("token is revoked after login", revoked_after_login),
    together("token is rotated", rotated),
    together("token is rotated, the old one kept", rotated_and_kept),
    together("too few rights to push", few_rights),
    alone("too few rights to push, and no quorum", few_rights_alone),
    together(
        "the right to make tags, and not to move them",
        only_new_tags,
    ),
];

fn login_and_pull(trial: &Trial<'_>, account: &Account) -> Told {
    let user = trial.login(trial.far, account)?;
    trial.pull(&user, trial.far, &trial.setting.app, "team/app")
}

fn there_and_back(trial: &Trial<'_>, account: &Account) -> Told {
    let repository = format!("team/of-{}", account.name);
    let image = trial.setting.layout(&account.name);
    trial.push(&trial.login(trial.near, account)?, &image, &repository)?;
    let user = trial.login(trial.far, account)?;
    trial.pull(&user, trial.far, &image, &repository)
}

fn public_pull(trial: &Trial<'_>) -> Told {
    trial.pull(&User::new(), trial.far, &trial.setting.app, "pub/app")
}

/// To the same host, by the same client: the login counts although the pull needs none.
fn public_pull_then_push(trial: &Trial<'_>) -> Told {
    let image = trial.setting.layout("public");
    trial.pull(&User::new(), trial.near, &trial.setting.app, "pub/app")?;
    let user = trial.login(trial.near, &trial.setting.robot)?;
    trial.pull(&user, trial.near, &trial.setting.app, "pub/app")?;
    trial.push(&user, &image, "pub/more")?;
    trial.push(&user, &image, "team/more")?;
    trial.pull(&User::new(), trial.far, &image, "pub/more")
}

/// A name that is there and one that is not get one answer.
fn is_hidden_from(trial: &Trial<'_>, user: &User) -> Told {
    let said = |repository: &str| {
        let pulled = trial.pull(user, trial.far, &trial.setting.app, repository);
        let said = pulled.clone().err().unwrap_or_default();
        refused(pulled)?;
        Ok::<_, String>(without_noise(&words(&said)).replace(repository, "REPOSITORY"))
    };
    let (there, not_there) = (said("team/app")?, said("team/none")?);
    match there == not_there {
        true => Ok(()),
        false => Err(format!("one is told\n{there}\nthe other\n{not_there}")),
    }
}

/// Without times, the names of temporary directories, and how often a bar of progress was drawn
/// before the first line of stderr.
fn without_noise(text: &str) -> String {
    let text = text.find("time=").map_or(text, |at| &text[at..]);
    let is_noise = |word: &&str| word.starts_with("time=") || word.contains("/tmp/");
    text.split(' ')
        .filter(|word| !is_noise(word))
        .collect::<Vec<_>>()
        .join(" ")
}

fn wrong_password(trial: &Trial<'_>) -> Told {
    let names = [&*trial.setting.robot.name, "ann", "nobody-of-this-name"];
    for name in names {
        trial.is_shut_out(&Account {
            name: name.to_owned(),
            secret: "not-the-password".to_owned(),
        })?;
    }
    Ok(())
}

fn revoked_after_login(trial: &Trial<'_>) -> Told {
    let account = token(trial.cluster, "short-lived", &["team/*:pull"], None);
    let user = trial.login(trial.near, &account)?;
    trial.pull(&user, trial.near, &trial.setting.app, "team/app")?;
    call(
        trial.cluster,
        Method::DELETE,
        "accounts/short-lived",
        &json!({}),
    );
    refused_everywhere(trial.cluster, &account);
    refused(trial.pull(&user, trial.near, &trial.setting.app, "team/app"))?;
    trial.is_shut_out(&account)
}

/// `account` with a new secret.
fn rotate(trial: &Trial<'_>, account: &Account, how: &serde_json::Value) -> Account {
    let path = format!("accounts/{}/rotate", account.name);
    let made = call(trial.cluster, Method::POST, &path, how);
    let new = Account {
        name: account.name.clone(),
        secret: made["secret"].as_str().expect("a secret").to_owned(),
    };
    known(trial.cluster, &new);
    new
}

fn rotated(trial: &Trial<'_>) -> Told {
    let old = token(trial.cluster, "rotated", &["team/*:pull"], None);
    let user = trial.login(trial.near, &old)?;
    trial.pull(&user, trial.near, &trial.setting.app, "team/app")?;
    let new = rotate(trial, &old, &json!({}));
    refused(trial.pull(&user, trial.near, &trial.setting.app, "team/app"))?;
    trial.is_shut_out(&old)?;
    login_and_pull(trial, &new)
}

fn rotated_and_kept(trial: &Trial<'_>) -> Told {
    let old = token(trial.cluster, "kept", &["team/*:pull"], None);
    let user = trial.login(trial.near, &old)?;
    let new = rotate(trial, &old, &json!({"keep_old_seconds": 600}));
    trial.pull(&user, trial.near, &trial.setting.app, "team/app")?;
    login_and_pull(trial, &old)?;
    login_and_pull(trial, &new)?;
    // And then it is over.
    let newest = rotate(trial, &new, &json!({"keep_old_seconds": 1}));
    refused_everywhere(trial.cluster, &new);
    let late = User::knowing(&trial.registry(trial.near), &new.name, &new.secret);
    refused(trial.pull(&late, trial.near, &trial.setting.app, "team/app"))?;
    login_and_pull(trial, &newest)
}

fn few_rights(trial: &Trial<'_>) -> Told {
    let user = trial.login(trial.near, &trial.setting.reader)?;
    trial.pull(&user, trial.near, &trial.setting.app, "team/app")?;
    refused(trial.push(&user, &trial.setting.layout("more"), "team/app"))?;
    refused(trial.push(&user, &trial.setting.layout("more"), "team/not-there-yet"))
}

/// Where nothing could be pushed at all, a push is refused at once for want of a right, and not held
/// until there is a quorum. Without the client: most ask first whether the manifest is there already,
/// which a region alone cannot deny, and are held for that.
fn few_rights_alone(trial: &Trial<'_>) -> Told {
    let reader = &trial.setting.reader;
    let user = trial.login(trial.near, reader)?;
    trial.pull(&user, trial.near, &trial.setting.app, "team/app")?;
    let client = Client::new(&trial.registry(trial.near)).logged_in(&reader.name, &reader.secret);
    let began = Instant::now();
    for path in ["team/app/blobs/uploads/", "team/none/blobs/uploads/"] {
        let request = client.request(Method::POST, &format!("/v2/{path}"));
        let status = wait(request.send())
            .map_err(|error| error.to_string())?
            .status();
        if status != StatusCode::FORBIDDEN {
            return Err(format!("POST {path}: {status}"));
        }
    }
    let image = Image::small("few rights");
    let put = wait(client.put_manifest("team/app", "1.0.0", image.manifest));
    let status = put.map_err(|error| error.to_string())?.status();
    if status != StatusCode::FORBIDDEN {
        return Err(format!("PUT of a manifest: {status}"));
    }
    match began.elapsed() {
        held if held > Duration::from_secs(10) => Err(format!("it was held for {held:?}")),
        _ => Ok(()),
    }
}

fn only_new_tags(trial: &Trial<'_>) -> Told {
    let (first, second) = (
        trial.setting.layout("first"),
        trial.setting.layout("second"),
    );
    let user = trial.login(trial.near, &trial.setting.creator)?;
    trial.push(&user, &first, "team/made")?;
    refused(trial.push(&user, &second, "team/made"))?;
    refused(trial.push(&user, &second, "team/app"))?;
    trial.pull(&user, trial.near, &first, "team/made")?;
    trial.pull(
        &trial.login(trial.far, &trial.setting.creator)?,
        trial.far,
        &first,
        "team/made",
    )
}
