//! Who may do what: names of accounts, rights, the repositories that a grant is for, and what a
//! short-lived token asks for. Pure: edge, state and command line read the same words by it.
//!
//! What must stay true: a value of these types is well formed; nothing is allowed that no grant
//! says; what a pattern covers is by whole path components, as with policies.

mod name;
mod pattern;
mod principal;
mod rights;
mod scope;

pub use name::AccountName;
pub use name::GroupName;
pub use name::NameInvalid;
pub use pattern::Pattern;
pub use principal::CredentialId;
pub use principal::Principal;
pub use principal::Who;
pub use rights::Grant;
pub use rights::GrantInvalid;
pub use rights::Rights;
pub use scope::Scope;
pub use scope::parse_all as parse_scopes;

/// What a request wants to do with a repository. Whether a tag is made or moved is known only when
/// the push is applied, and decided there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    /// One of these is enough.
    pub fn rights(self) -> Rights {
        match self {
            Action::Pull => Rights::PULL,
            Action::Push => Rights::PUSH,
            Action::Delete => Rights::DELETE,
        }
    }

    /// As a challenge asks for it; a push reads what is there already.
    pub fn words(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Push => "pull,push",
            Action::Delete => "delete",
        }
    }
}

/// Milliseconds since 1970, as expiry is compared; 0 is never.
pub fn is_over(expires_at_ms: u64, now_ms: u64) -> bool {
    expires_at_ms != 0 && expires_at_ms <= now_ms
}
