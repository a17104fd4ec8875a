//! The two meanings of a range: `Range` of a blob that is read (RFC 9110, 14), and `Content-Range`
//! of a chunk that is uploaded, which the distribution spec writes its own way.

use crate::registry::RangeSpec;

/// More are answered with the whole blob.
const RANGES_MAX: usize = 1024;

/// The ranges of bytes that are asked for. None when there is no header, and when it is not
/// understood: the answer is then the whole blob, as RFC 9110 has it. A range that ends before it
/// begins is passed on; no blob satisfies it.
pub fn parse_ranges(header: &str) -> Option<Vec<RangeSpec>> {
    let (unit, ranges) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let ranges = ranges.split(',').map(parse_range).take(RANGES_MAX + 1);
    let ranges = ranges.collect::<Option<Vec<_>>>()?;
    (ranges.len() <= RANGES_MAX).then_some(ranges)
}

fn parse_range(range: &str) -> Option<RangeSpec> {
    let (first, last) = range.trim().split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", last) => Some(RangeSpec::Last(number(last)?)),
        (first, "") => Some(RangeSpec::From(number(first)?)),
        (first, last) => Some(RangeSpec::FromTo(number(first)?, number(last)?)),
    }
}

/// What no u64 holds is beyond the end of every blob.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Where the client says that a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub start: u64,
    pub length: u64,
}

/// `<first>-<last>`; also `bytes <first>-<last>/<total>`, which some clients send.
pub fn parse_chunk(header: &str) -> Option<Chunk> {
    let text = header.trim();
    let text = text
        .strip_prefix("bytes")
        .map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let range = text.split_once('/').map_or(text, |(range, _total)| range);
    let (first, last) = range.split_once('-')?;
    let (start, last) = (strict(first.trim())?, strict(last.trim())?);
    let length = last.checked_sub(start)?.checked_add(1)?;
    Some(Chunk { start, length })
}

fn strict(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// `Range` of an upload's answers: the bytes that are there. Of an empty upload it is `0-0`,
/// since docker does not parse `0--1`.
pub fn uploaded(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn ranges_of_bytes_are_understood() {
        for (header, range) in [
            ("bytes=0-0", RangeSpec::FromTo(0, 0)),
            ("bytes=500-1499", RangeSpec::FromTo(500, 1499)),
            ("bytes=500-", RangeSpec::From(500)),
            ("bytes=-500", RangeSpec::Last(500)),
            ("Bytes = 1 - 2", RangeSpec::FromTo(1, 2)),
            ("bytes=99999999999999999999999-", RangeSpec::From(u64::MAX)),
            ("bytes=500-0", RangeSpec::FromTo(500, 0)),
        ] {
            assert_eq!(parse_ranges(header), Some(vec![range]), "{header}");
        }
    }

    #[test]
    fn several_ranges_are_understood_up_to_a_bound() {
        let two = vec![RangeSpec::FromTo(0, 9), RangeSpec::Last(5)];
        assert_eq!(parse_ranges("bytes=0-9,-5"), Some(two.clone()));
        assert_eq!(parse_ranges("bytes= 0-9 , -5"), Some(two));
        let many = |n| format!("bytes={}", vec!["1-2"; n].join(","));
        assert_eq!(parse_ranges(&many(RANGES_MAX)).unwrap().len(), RANGES_MAX);
        assert_eq!(parse_ranges(&many(RANGES_MAX + 1)), None);
    }

    #[test]
    fn what_is_not_ranges_of_bytes_means_the_whole_blob() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1--2",
            "lines=1-2",
            "bytes=0-9,",
            "bytes=0-9,x",
            "bytes=0-9;20-29",
        ] {
            assert_eq!(parse_ranges(header), None, "{header}");
        }
    }

    #[test]
    fn chunks_come_in_the_form_of_the_spec_and_in_that_of_rfc_9110() {
        for header in [
            "5-9",
            " 5-9 ",
            "bytes 5-9/10",
            "bytes 5-9/*",
            "bytes=5-9",
            "bytes 5-9",
        ] {
            assert_eq!(
                parse_chunk(header),
                Some(Chunk {
                    start: 5,
                    length: 5
                }),
                "{header}"
            );
        }
        let most = format!("0-{}", u64::MAX);
        for header in [
            "",
            "-",
            "5-",
            "-9",
            "x-y",
            "9-5",
            "1-2-3",
            "5",
            "bytes",
            &most,
            "99999999999999999999-1",
        ] {
            assert_eq!(parse_chunk(header), None, "{header}");
        }
    }

    #[test]
    fn an_empty_upload_answers_what_docker_can_parse() {
        assert_eq!(uploaded(0), "0-0");
        assert_eq!(uploaded(1), "0-0");
        assert_eq!(uploaded(10), "0-9");
    }

    proptest! {
        #[test]
        fn no_header_panics(header in any::<String>(), a in any::<u64>(), b in any::<u64>()) {
            let _ = (parse_ranges(&header), parse_chunk(&header));
            let _ = (parse_ranges(&format!("bytes={a}-{b}")), parse_chunk(&format!("{a}-{b}")));
        }
    }
}
