//! Keys of the files that users write: one that means nothing is refused, with
//! the one that was likely meant.

/// A key that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown key `{key}` in {table}{}", suggest(.suggestion))]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub table: String,
    /// The likeliest meant.
    pub suggestion: Option<String>,
}

/// Refuses keys of `table` that aren't `known`; `place` says where it stands.
pub(crate) fn check(table: &toml::Table, known: &[&str], place: &str) -> Result<(), UnknownKey> {
    let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let suggestion = nearest(key, known.iter().copied());
    Err(UnknownKey { key: key.clone(), table: place.to_owned(), suggestion })
}

/// `; did you mean ...?`, where something near is known.
pub(crate) fn suggest(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |s| format!("; did you mean `{s}`?"))
}

/// The nearest of `known`, if it is near at all.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let score = |k: &str| strsim::jaro_winkler(&word.to_lowercase(), &k.to_lowercase());
    let best = known.map(|k| (score(k), k)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| best.1.to_owned())
}
