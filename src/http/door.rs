//! The door: what a route needs is asked for here, and no handler gets a repository but through it.

use super::auth;
use super::auth::Asking;
use super::auth::Needed;
use super::body::Incoming;
use super::handlers::*;
use super::headers;
use super::route::Refused;
use super::route::Route;
use super::token;
use crate::audit::Event;
use crate::audit::Outcome;
use crate::budget::Budget;
use crate::login::Login;
use crate::oci::Reference;
use crate::registry;
use crate::registry::Registry;
use crate::registry::Repository;
use crate::registry::Step;
use http::StatusCode;
use http::header;
use http::request::Parts;
use serde_json::json;

/// What stands between a route and what it does.
pub struct Door<'a> {
    pub registry: &'a Registry,
    pub login: &'a Login,
}

impl Door<'_> {
    /// `who` is told as soon as it is known.
    pub async fn handle(
        &self,
        route: Route,
        request: &Parts,
        body: Incoming,
        who: &mut String,
    ) -> Answer {
        let (registry, login) = (self.registry, self.login);
        let Some(needed) = auth::needed(&route) else {
            return match route {
                Route::Health => health(registry, request),
                Route::GetToken => token::get(login, request).await,
                Route::PostToken => token::post(login, request, body).await,
                _ => Ok(with(
                    empty(StatusCode::OK),
                    header::ALLOW,
                    "GET, HEAD, OPTIONS",
                )),
            };
        };
        let asking = auth::ask(login, request, &needed).await?;
        asking.principal.as_str().clone_into(who);
        // An upload lasts as long as its client likes, and is bounded as a session.
        let _turn = match auth::is_upload(&route) {
            true => None,
            false => Some(login.turn(&asking.principal).await.map_err(auth::not_now)?),
        };
        let Needed::Repository(name, action) = needed else {
            return match route {
                Route::Catalog => catalog(registry, &asking, request).await,
                _ => Ok(json_answer(&json!({}))),
            };
        };
        let repository = match registry.authorize(&asking.principal, action, name) {
            Ok(repository) => repository,
            Err(error @ registry::Error::NotAllowed { .. }) => {
                let needed = Needed::Repository(name, action);
                return Err(asking.refuse(login, &needed, &error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        if let Err(too_old) = login.check_age(&asking.principal).await
            && !repository.is_public().map_err(registry::Error::from)?
        {
            return Err(auth::not_now(too_old));
        }
        self.answer(&route, repository, &asking, request, body)
            .await
    }

    async fn answer(
        &self,
        route: &Route,
        repository: Repository,
        asking: &Asking,
        request: &Parts,
        body: Incoming,
    ) -> Answer {
        match route {
            Route::GetBlob(_, digest) => get_blob(repository, digest, request).await,
            Route::DeleteBlob(_, digest) => {
                let deleted = repository.delete_blob(digest, Budget::default()).await;
                self.note(
                    asking,
                    "delete-blob",
                    &format!("{}@{digest}", repository.name()),
                    &deleted,
                );
                deleted?;
                let accepted = empty(StatusCode::ACCEPTED);
                Ok(with(accepted, headers::CONTENT_DIGEST, digest.to_string()))
            }
            Route::GetManifest(_, reference) => get_manifest(repository, reference, request).await,
            Route::PutManifest(_, reference) => {
                put_manifest(repository, reference, request, body).await
            }
            Route::DeleteManifest(_, reference) => {
                let condition = precondition(&request.headers);
                let deleted = repository
                    .delete_manifest(reference, condition, Budget::default())
                    .await;
                let (action, target) = match reference {
                    Reference::Tag(tag) => ("delete-tag", format!("{}:{tag}", repository.name())),
                    Reference::Digest(digest) => {
                        ("delete-manifest", format!("{}@{digest}", repository.name()))
                    }
                };
                self.note(asking, action, &target, &deleted);
                deleted?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            Route::StartUpload(_) => {
                start_upload(self.registry, &asking.principal, repository, request, body).await
            }
            Route::UploadStatus(name, id) => {
                let offset = step(&repository, id, Step::Offset).await?;
                Ok(upload_answer(StatusCode::NO_CONTENT, name, id, offset))
            }
            Route::AppendUpload(name, id) => {
                let append = Step::Append(chunk(request)?, body.stream());
                let at = step(&repository, id, append).await?;
                Ok(upload_answer(StatusCode::ACCEPTED, name, id, at))
            }
            Route::FinishUpload(_, id) => finish_upload(repository, id, request, body).await,
            Route::CancelUpload(_, id) => {
                step(&repository, id, Step::Cancel).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Route::Tags(_) => tags(repository, request).await,
            Route::Referrers(_, digest) => referrers(repository, digest, request).await,
            Route::Health
            | Route::Version
            | Route::VersionOptions
            | Route::Catalog
            | Route::GetToken
            | Route::PostToken => Err(Refused::NotFound.into()),
        }
    }

    /// A delete, in the audit log; with the entry that did it.
    fn note(
        &self,
        asking: &Asking,
        action: &str,
        target: &str,
        came: &Result<u64, registry::Error>,
    ) {
        let who = asking.principal.as_str();
        let event = match came {
            Ok(index) => Event::new(who, action, target, Outcome::Done).at_index(*index),
            Err(error) => Event::new(who, action, target, Outcome::Failed).because(error),
        };
        self.login.audit().write(event.from(asking.visitor.client));
    }
}
