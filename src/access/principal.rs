//! Who asks, once that is settled.

use super::name::AccountName;
use super::rights::Rights;
use super::scope::Scope;
use crate::oci::RepositoryName;
use std::sync::Arc;

/// Which of an account's secrets was shown: the start of its stored hash, in hex. A token that was
/// made from it ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialId(pub String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nobody has logged in.
    Anonymous,
    /// This node has no accounts: whoever reaches it may do everything.
    Everyone,
    /// Whoever may open the socket in the node's data directory.
    Local,
    Account {
        name: AccountName,
        credential: CredentialId,
    },
}

/// Who asks, and what the token that was shown is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub who: Who,
    /// Of a short-lived token: it is good for these and nothing else.
    pub scopes: Option<Arc<[Scope]>>,
}

impl Principal {
    pub fn new(who: Who) -> Principal {
        Principal { who, scopes: None }
    }

    /// As it stands in records, and in what binds an upload to who began it.
    pub fn as_str(&self) -> &str {
        match &self.who {
            Who::Anonymous | Who::Everyone => "anonymous",
            Who::Local => "local",
            Who::Account { name, .. } => name.as_str(),
        }
    }

    pub fn account(&self) -> Option<&AccountName> {
        match &self.who {
            Who::Account { name, .. } => Some(name),
            _ => None,
        }
    }

    /// May do everything, whatever the state says.
    pub fn is_unbound(&self) -> bool {
        matches!(self.who, Who::Everyone | Who::Local)
    }

    /// What the token leaves of rights to the repository.
    pub fn limit(&self, repository: &RepositoryName) -> Rights {
        let Some(scopes) = &self.scopes else {
            return Rights::ADMIN;
        };
        let of = scopes
            .iter()
            .filter(|scope| scope.repository().as_ref() == Some(repository));
        of.map(Scope::rights)
            .fold(Rights::NONE, |all, rights| all | rights)
    }
}
