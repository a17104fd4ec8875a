//! How every command speaks: tables that line up, JSON that stays stable, errors that say what
//! to do next.

use crate::api::types::ErrorBody;
use crate::api::types::ErrorDetail;
use comfy_table::Table;
use comfy_table::presets;
use serde::Serialize;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Why a command did not do what was asked, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    message: String,
    next: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    Refused,
    NoServer,
}

impl Kind {
    fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Refused => 2,
            Kind::NoServer => 3,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Kind::Failed => "FAILED",
            Kind::Refused => "REFUSED",
            Kind::NoServer => "NO_SERVER",
        }
    }
}

impl Failure {
    fn new(kind: Kind, message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
            next: next.into(),
        }
    }

    /// Exit code 1: it was tried.
    pub fn limit(message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::new(Kind::Failed, message, next)
    }

    /// Exit code 1, for what the operating system would not do.
    pub fn failed(what: &str, error: &dyn Error) -> Failure {
        Failure::limit(
            format!("{what}: {}", chain(error)),
            "remove the cause, then try again",
        )
    }

    /// Exit code 2: nothing was tried.
    pub fn refused(message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::new(Kind::Refused, message, next)
    }

    /// Exit code 3.
    pub fn no_server(message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::new(Kind::NoServer, message, next)
    }

    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                code: self.kind.as_str().to_owned(),
                message: self.message.clone(),
                next: self.next.clone(),
            },
        }
    }

    /// What another process of this program failed with.
    pub fn from_body(body: ErrorBody) -> Failure {
        let kinds = [Kind::Failed, Kind::Refused, Kind::NoServer];
        let kind = kinds
            .into_iter()
            .find(|kind| kind.as_str() == body.error.code);
        Failure::new(
            kind.unwrap_or(Kind::Failed),
            body.error.message,
            body.error.next,
        )
    }

    pub fn report(&self, format: Format) -> ExitCode {
        let text = match format {
            Format::Json => serde_json::to_string(&self.body()).unwrap_or_default(),
            Format::Table => format!("error: {}\n next: {}", self.message, self.next),
        };
        // Nothing can be said when even stderr is gone.
        let _ = writeln!(std::io::stderr(), "{text}");
        ExitCode::from(self.kind.exit_code())
    }
}

/// An error with all of its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Writes to stdout at once, so that a reader of a pipe sees each event when it happens. A reader
/// that has left (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed("write to stdout", &error))
        }
        _ => Ok(()),
    }
}

/// One JSON document on one line.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| Failure::failed("write JSON", &error))?;
    print(&format!("{text}\n"))
}

/// Milliseconds since 1970 as people read them, in UTC.
pub fn time(at_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp((at_ms / 1000).cast_signed());
    let at = at.ok().and_then(|at| at.format(&Rfc3339).ok());
    at.map_or_else(
        || at_ms.to_string(),
        |at| at.replace('T', " ").trim_end_matches('Z').to_owned(),
    )
}

/// Columns that line up, without lines.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// Powers of 1024, three digits.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || amount >= 100.0 { 0 } else { 1 };
    format!("{amount:.digits$} {}", units[unit])
}

/// `500ms`, `30s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let wrong = || format!("{text:?} is no duration: write 500ms, 30s, 5m, 1h or 30d");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in [
            "",
            "5",
            "m",
            "-1s",
            "1.5h",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(200 << 30), "200 GiB");
    }

    #[test]
    fn a_failure_survives_the_way_between_two_processes() {
        let failure = Failure::refused("no", "do that");
        let json = serde_json::to_value(failure.body()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {"code": "REFUSED", "message": "no", "next": "do that"}})
        );
        assert_eq!(Failure::from_body(failure.body()), failure);
    }

    #[test]
    fn table_columns_line_up_and_lines_have_no_tail() {
        let text = table(
            &["a", "b"],
            vec![vec!["long one".to_owned(), "x".to_owned()]],
        );
        assert_eq!(text, "a         b\nlong one  x\n");
    }
}
