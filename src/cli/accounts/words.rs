//! The words of `roadstead user`, `token`, `key`, `ci` and `group`.

use crate::cli::output;
use std::path::PathBuf;
use std::time::Duration;

pub const GRANTS: &str = "\
Grants are PATTERN:RIGHT[,RIGHT…], in quotes for the shell:
  'acme/*:pull,push'   acme and all repositories under it
  'acme/app:pull'      one repository
  '*:admin'            the whole registry
Rights:
  pull        read
  push        send images; name tags that are not there yet, and move those that are
  create      as push, but a tag that is there stays (push is create and overwrite together)
  overwrite   as push, but only tags that are there already
  delete      take away tags, manifests, blobs
  admin       all of these, and the tokens, visibility and members of what the pattern is for";

/// What a new account may do, and for how long.
#[derive(Debug, clap::Args)]
pub struct New {
    /// What it may do; may be repeated
    #[arg(long = "grant", value_name = "GRANT")]
    pub grants: Vec<String>,
    /// It ends by itself after this time, as 30d
    #[arg(long, value_name = "TIME", value_parser = output::duration)]
    pub expires: Option<Duration>,
}

#[derive(Debug, clap::Subcommand)]
pub enum User {
    /// Make a user; asks for the new password
    #[command(after_help = GRANTS)]
    Add {
        /// Of a-z, A-Z, 0-9 and . _ @ + -
        name: String,
        #[command(flatten)]
        new: New,
        /// A group that it is in; may be repeated
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// Read the new password from stdin: one line, after that of --password-stdin
        #[arg(long)]
        new_password_stdin: bool,
    },
    /// Users and what they may do
    List,
    /// Remove a user and its access keys, at once and everywhere
    Remove { name: String },
    /// Set a new password; tokens and logins from the old one end
    Password {
        name: String,
        /// Read the new password from stdin: one line, after that of --password-stdin
        #[arg(long)]
        new_password_stdin: bool,
    },
    /// Give a right; it takes the place of the grant for the same pattern
    #[command(after_help = GRANTS)]
    Grant(Give),
    /// Take the grant for a pattern away
    Revoke { name: String, pattern: String },
}

#[derive(Debug, clap::Args)]
pub struct Give {
    /// Who gets it
    pub name: String,
    /// PATTERN:RIGHT[,RIGHT…]
    pub grant: String,
    /// It ends by itself after this time, as 30d
    #[arg(long, value_name = "TIME", value_parser = output::duration)]
    pub expires: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// Whose secret it is
    pub name: String,
    /// The old secret stays good for so long
    #[arg(long, value_name = "TIME", value_parser = output::duration)]
    pub keep_old: Option<Duration>,
    /// It ends by itself after this time, counted from now
    #[arg(long, value_name = "TIME", value_parser = output::duration)]
    pub expires: Option<Duration>,
    /// Print what docker, podman and Kubernetes read, for the servers of --server
    #[arg(long)]
    pub docker_config: bool,
}

#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Make a token for a machine; its secret is shown once
    #[command(after_help = GRANTS)]
    Create {
        /// Of a-z, A-Z, 0-9 and . _ @ + -
        name: String,
        #[command(flatten)]
        new: New,
        /// Print what docker, podman and Kubernetes read, for the servers of --server
        #[arg(long)]
        docker_config: bool,
    },
    /// Give it a new secret
    Rotate(Rotate),
    /// Tokens, what they may do, and when they were used last
    List,
    /// End a token, at once and everywhere
    Revoke { name: String },
    /// Give a right; it takes the place of the grant for the same pattern
    #[command(after_help = GRANTS)]
    Grant(Give),
    /// Take the grant for a pattern away
    Ungrant { name: String, pattern: String },
}

#[derive(Debug, clap::Subcommand)]
pub enum Key {
    /// Make an access key: it acts as a user, without the password
    #[command(after_help = GRANTS)]
    Create {
        /// [default: one is made up]
        name: Option<String>,
        /// The user that it acts as [default: yourself]
        #[arg(long = "for", value_name = "USER")]
        owner: Option<String>,
        /// No more than this of what the user may do; without, all of it
        #[command(flatten)]
        new: New,
        /// Print what docker, podman and Kubernetes read, for the servers of --server
        #[arg(long)]
        docker_config: bool,
    },
    /// Give it a new secret
    Rotate(Rotate),
    /// Access keys and whose they are
    List,
    /// End an access key, at once and everywhere
    Revoke { name: String },
}

#[derive(Debug, clap::Subcommand)]
pub enum CiSystem {
    /// Trust the tokens that a CI system gives its jobs (OpenID Connect); no secret is stored. A job
    /// logs in as user `oidc` with its token as the password
    #[command(after_help = GRANTS)]
    Add {
        /// Of a-z, A-Z, 0-9 and . _ @ + -
        name: String,
        /// As it stands in `iss` of the tokens
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// As it must stand in `aud`
        #[arg(long)]
        audience: String,
        /// A claim that the token must have; * is any text; may be repeated, and all must fit
        #[arg(long = "claim", value_name = "NAME=VALUE", required = true)]
        claims: Vec<String>,
        /// The issuer's keys (a JSON Web Key Set), when it cannot be asked for them
        #[arg(long, value_name = "FILE")]
        jwks: Option<PathBuf>,
        #[command(flatten)]
        new: New,
    },
    /// Trusted CI systems
    List,
    /// Trust it no longer
    Remove { name: String },
}

#[derive(Debug, clap::Subcommand)]
pub enum GroupCommand {
    /// Make a group: users that share grants
    #[command(after_help = GRANTS)]
    Add {
        /// Of a-z, A-Z, 0-9 and . _ @ + -
        name: String,
        #[arg(long = "grant", value_name = "GRANT")]
        grants: Vec<String>,
    },
    /// Groups, their grants and members
    List,
    /// Remove a group; its members lose what it gave them
    Remove { name: String },
    /// Take a user in
    Join { group: String, member: String },
    /// Take a user out
    Leave { group: String, member: String },
    /// Give all members a right; it takes the place of the grant for the same pattern
    #[command(after_help = GRANTS)]
    Grant(Give),
    /// Take the grant for a pattern away
    Revoke { name: String, pattern: String },
}
