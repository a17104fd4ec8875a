//! The commands: words in, tables or JSON out. Exit codes: 0 done, 1 failed, 2 refused or wrong
//! usage, 3 no server answered. With `-o json` an error is one JSON document on stderr.

mod accounts;
mod audit;
mod certs;
mod client;
mod config_check;
mod dev;
mod docker_config;
mod login;
mod output;
mod policy;
mod region;
mod selftest;
mod serve;
mod status;
mod verify;

use accounts::Run;
use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;
use client::Connection;
use output::Failure;
use output::Format;
use std::ffi::OsString;
use std::process::ExitCode;

/// A container registry that lives in several regions at once.
#[derive(Debug, Parser)]
#[command(
    name = "roadstead",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    /// How results and errors are written
    #[arg(
        short,
        long,
        value_enum,
        global = true,
        default_value = "table",
        value_name = "FORMAT"
    )]
    output: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster of several regions on this machine, to try things
    Dev(dev::Args),
    /// Run one node
    Serve(Box<serve::Args>),
    /// How the cluster is: who leads, what can be lost, what is missing
    Status(status::Args),
    /// What counts for which repositories: copies, immutable tags
    #[command(subcommand)]
    Policy(policy::Command),
    /// Keep a credential for the servers of --server, where docker and podman find it too
    Login,
    /// Forget the credential for the servers of --server
    Logout,
    /// Who you are to the server, and what you may do
    Whoami,
    /// Users: people with a name and a password
    #[command(subcommand)]
    User(accounts::User),
    /// Robot tokens: machines with a name and a random secret
    #[command(subcommand)]
    Token(accounts::Token),
    /// Access keys: act as a user, without the password
    #[command(subcommand)]
    Key(accounts::Key),
    /// CI systems whose own tokens are taken
    #[command(subcommand)]
    Ci(accounts::CiSystem),
    /// Groups: users that share grants
    #[command(subcommand)]
    Group(accounts::GroupCommand),
    /// Who did what, at the region that answers
    Audit(audit::Args),
    /// The keys that short-lived tokens are signed with
    #[command(subcommand)]
    SigningKey(audit::SigningKey),
    /// Regions of the cluster: what adding one changes, and the command that starts it
    #[command(subcommand)]
    Region(region::Command),
    /// Certificates by which nodes know each other
    #[command(subcommand)]
    Certs(certs::Command),
    /// Compare what the nodes have
    Verify(verify::Args),
    /// Push a tiny image, pull it back, delete it
    Selftest,
    /// Look at a configuration before it is used
    #[command(subcommand)]
    Config(config_check::Command),
    /// Print the version
    Version,
    /// Print the completions for a shell
    Completions { shell: clap_complete::Shell },
}

/// What the process does, and how it ends.
pub fn main() -> ExitCode {
    if let Err(failure) = dev::end_with_parent() {
        return failure.report(Format::Table);
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error, &arguments),
    };
    let format = cli.output;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

fn wrong_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help || !wants_json(arguments) {
        // Nothing can be said when even stderr is gone.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let message = error.to_string();
    let message = message.trim().trim_start_matches("error: ").to_owned();
    Failure::refused(message, "`roadstead help` shows the commands").report(Format::Json)
}

/// Whether JSON was asked for, on a command line that could not be parsed.
fn wants_json(arguments: &[OsString]) -> bool {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    words
        .iter()
        .any(|word| matches!(*word, "-ojson" | "-o=json" | "--output=json"))
        || words
            .windows(2)
            .any(|pair| matches!(pair[0], "-o" | "--output") && pair[1] == "json")
}

fn run(cli: Cli) -> Result<(), Failure> {
    let (format, connection) = (cli.output, cli.connection);
    match cli.command {
        Command::Dev(mut args) => {
            args.data_dir = connection.data_dir.unwrap_or(args.data_dir);
            on_one_thread(dev::run(args, format))?
        }
        Command::Serve(mut args) => {
            args.data_dir = connection.data_dir;
            serve::run(*args)
        }
        Command::Login => on_one_thread(login::login(connection, format))?,
        Command::Logout => login::logout(&connection),
        Command::Whoami => on_one_thread(login::whoami(connection, format))?,
        Command::User(command) => on_one_thread(Run::new(connection, format)?.user(command))?,
        Command::Token(command) => on_one_thread(Run::new(connection, format)?.token(command))?,
        Command::Key(command) => on_one_thread(Run::new(connection, format)?.key(command))?,
        Command::Ci(command) => on_one_thread(Run::new(connection, format)?.ci(command))?,
        Command::Group(command) => on_one_thread(Run::new(connection, format)?.group(command))?,
        Command::Audit(args) => on_one_thread(audit::run(args, connection, format))?,
        Command::SigningKey(command) => {
            on_one_thread(audit::signing_key(command, connection, format))?
        }
        Command::Status(args) => on_one_thread(status::run(args, connection, format))?,
        Command::Policy(command) => on_one_thread(policy::run(command, connection, format))?,
        Command::Region(command) => on_one_thread(region::run(command, connection, format))?,
        Command::Certs(command) => on_one_thread(certs::run(command, format))?,
        Command::Verify(args) => on_one_thread(verify::run(args, connection, format))?,
        Command::Selftest => on_one_thread(selftest::run(connection, format))?,
        Command::Config(command) => config_check::run(command, format),
        Command::Version => version(format),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "roadstead", &mut text);
            output::print(&String::from_utf8_lossy(&text))
        }
    }
}

/// Also what `dev` needs: its children end with the thread that started them.
fn on_one_thread<F: Future>(work: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed("start the runtime", &error))?;
    Ok(runtime.block_on(work))
}

fn version(format: Format) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    // Set by whoever builds a release; a plain build need not have the repository.
    let commit = option_env!("ROADSTEAD_COMMIT");
    match format {
        Format::Json => output::json(&serde_json::json!({"version": version, "commit": commit})),
        Format::Table => {
            let commit = commit
                .map(|commit| format!(" ({commit})"))
                .unwrap_or_default();
            output::print(&format!("roadstead {version}{commit}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    /// A word of a subcommand with the id of an option of all commands would be taken for that option.
    #[test]
    fn no_word_of_a_command_is_taken_for_an_option_of_all() {
        fn check(command: &clap::Command, of_all: &[String]) {
            for argument in command.get_arguments() {
                let id = argument.get_id().to_string();
                let is_one = of_all.contains(&id) && !argument.is_global_set();
                assert!(!is_one, "{id} of {}", command.get_name());
            }
            command
                .get_subcommands()
                .for_each(|inner| check(inner, of_all));
        }
        let all = Cli::command();
        let of_all = all
            .get_arguments()
            .filter(|argument| argument.is_global_set());
        let of_all: Vec<String> = of_all
            .map(|argument| argument.get_id().to_string())
            .collect();
        assert!(of_all.contains(&"user".to_owned()), "{of_all:?}");
        check(&all, &of_all);
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        for words in [
            ["roadstead", "-o", "json", "status", "--server", "http://a"],
            ["roadstead", "status", "--server", "http://a", "-o", "json"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.output, Format::Json);
            assert_eq!(cli.connection.server, ["http://a"]);
        }
        let cli = Cli::try_parse_from(["roadstead", "dev", "kill", "r1", "--data-dir", "d"]);
        assert!(cli.is_ok(), "{cli:?}");
        assert!(Cli::try_parse_from(["roadstead", "dev", "--regions", "8"]).is_err());
        assert!(Cli::try_parse_from(["roadstead", "verify"]).is_err());
    }

    #[test]
    fn wrong_usage_is_told_in_json_when_json_was_asked_for() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&words("roadstead stats -o json")));
        assert!(wants_json(&words("roadstead --output=json stats")));
        assert!(!wants_json(&words("roadstead stats -o table")));
    }
}
