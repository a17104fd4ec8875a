//! What was probably meant by a word that is not known.

/// The candidate that is nearest to `word`, when it is near enough to be meant.
pub fn nearest(word: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    candidates
        .map(|candidate| (distance(&word.to_lowercase(), candidate), candidate))
        .min()
        .filter(|(far, candidate)| *far <= candidate.len().max(word.len()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's: how many letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_that_is_near_is_taken_as_meant() {
        let words = || ["ack", "copies", "sparse"].into_iter();
        assert_eq!(nearest("copys", words()), Some("copies"));
        assert_eq!(nearest("ACK", words()), Some("ack"));
        assert_eq!(nearest("visibility", words()), None);
    }
}
