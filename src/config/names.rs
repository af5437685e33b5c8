//! "Did you mean": the known word that is nearest to an unknown one.

/// The candidate nearest to `word`, unless all are too different for a typing error.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One error in a short word, or about one in three characters of a longer one.
    let tolerance = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= tolerance || is_stem(word, candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Whether `word` is the beginning or end of the right word: `grace` for `drain_grace`, or `s3` for `s3-server`.
fn is_stem(word: &str, candidate: &str) -> bool {
    word.len() >= 2 && (candidate.starts_with(word) || candidate.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_halves_but_not_strangers() {
        let known = ["deadline", "drain_grace", "mode"];
        assert_eq!(nearest("deadlin", known), Some("deadline"));
        assert_eq!(nearest("daedline", known), Some("deadline"));
        assert_eq!(nearest("grace", known), Some("drain_grace"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
