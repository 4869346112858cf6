//! Arguments that several verbs read the same way.

use std::collections::BTreeMap;
use std::path::Path;

use tierline_graph::Tensor;

use super::usage;
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith};

/// `NAME=1,3,224,224` options as shapes by input name.
pub fn shapes(options: &[String]) -> CommandResult<BTreeMap<String, Vec<u64>>> {
    options
        .iter()
        .map(|option| {
            let (name, dims) = option
                // Names may hold a `=`, sizes don't.
                .rsplit_once('=')
                .ok_or_else(|| usage(format!("--shape {option}: write it as NAME=1,3,224,224")))?;
            let dims =
                dims.split(',').map(|d| d.trim().parse::<u64>()).collect::<Result<Vec<_>, _>>().map_err(|_| {
                    usage(format!("--shape {option}: sizes are whole numbers, as in {name}=1,3,224,224"))
                })?;
            Ok((name.to_owned(), dims))
        })
        .collect()
}

/// `NAME=@FILE.npy` options as tensors.
pub fn tensors(options: &[String]) -> CommandResult<Vec<(String, Tensor)>> {
    options
        .iter()
        .map(|option| {
            let splits: Vec<(&str, &str)> =
                option.match_indices("=@").map(|(at, mark)| (&option[..at], &option[at + mark.len()..])).collect();
            // Names and files may hold the mark too: the file that is there decides.
            let there = splits.iter().find(|(_, file)| Path::new(file).exists());
            let (name, file) = there
                .or(splits.first())
                .ok_or_else(|| usage(format!("--input {option}: write it as NAME=@FILE.npy")))?;
            Ok(((*name).to_owned(), read_npy(Path::new(file))?))
        })
        .collect()
}

/// A tensor from a NumPy file.
pub fn read_npy(path: &Path) -> CommandResult<Tensor> {
    let bytes = std::fs::read(path)
        .map_err(|e| CommandError::message(ExitCode::Failure, format!("cannot read {path:?}: {e}")))?;
    tierline_codec::npy::read(&bytes).map_err(|e| anyhow::anyhow!("{path:?}: {e}")).exit_with(ExitCode::Failure)
}

/// Tensor names as people read and write them in one word: separated by
/// commas, with a backslash before what belongs to a name: a comma, a
/// backslash, blanks at its ends.
pub fn join_names(names: &[String]) -> String {
    names.iter().map(|name| escaped(name)).collect::<Vec<_>>().join(",")
}

fn escaped(name: &str) -> String {
    let blank = |c: char| c.is_whitespace();
    let inside = name.trim_start_matches(blank).len();
    let (first, last) = (name.len() - inside, name.trim_end_matches(blank).len());
    let mark = |(at, c): (usize, char)| {
        let part_of_name = matches!(c, ',' | '\\') || at < first || at >= last;
        part_of_name.then_some('\\').into_iter().chain([c])
    };
    name.char_indices().flat_map(mark).collect()
}

/// Tensor names as [`join_names`] writes them. Names with commas need no
/// backslash where only one way to read the text gives names of the model.
pub fn split_names(text: &str, known: &dyn Fn(&str) -> bool) -> CommandResult<Vec<String>> {
    let marked = unescaped(text);
    let mut readings = readings(text, known);
    if marked.iter().all(|name| known(name)) && !readings.contains(&marked) {
        readings.push(marked.clone());
    }
    match readings.len() {
        // No name of the model: whoever looks it up says which.
        0 => Ok(marked),
        1 => Ok(readings.remove(0)),
        _ => {
            let list: Vec<String> = readings.iter().map(|r| format!("`{}`", join_names(r))).collect();
            let text = format!("`{text}` can be read as tensors {}", list.join(" or "));
            Err(usage(text).hint("put a backslash before commas that belong to a name, a blank behind the others"))
        }
    }
}

/// Names between commas without a backslash before them, blanks cut off.
fn unescaped(text: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    // How much of the name is more than blanks at its end.
    let mut kept = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let next = if c == '\\' { chars.next() } else { None };
        let Some(name) = names.last_mut() else { break };
        match next {
            Some(next) => {
                name.push(next);
                kept = name.len();
            }
            None if c == ',' => {
                name.truncate(kept);
                names.push(String::new());
                kept = 0;
            }
            None if c.is_whitespace() && name.is_empty() => {}
            None => {
                name.push(c);
                if !c.is_whitespace() {
                    kept = name.len();
                }
            }
        }
    }
    if let Some(name) = names.last_mut() {
        name.truncate(kept);
    }
    names
}

/// Up to two ways to cut the text at commas so that every part is known.
fn readings(text: &str, known: &dyn Fn(&str) -> bool) -> Vec<Vec<String>> {
    let part = |from: usize, to: usize| {
        let raw = &text[from..to];
        [raw, raw.trim()].into_iter().find(|name| !name.is_empty() && known(name))
    };
    let ends: Vec<usize> = text.match_indices(',').map(|(at, _)| at).chain([text.len()]).collect();
    // Ways to read the text up to each end, those of a name's length first.
    let mut ways: Vec<Vec<Vec<String>>> = Vec::with_capacity(ends.len());
    for (i, &end) in ends.iter().enumerate() {
        let mut here: Vec<Vec<String>> = part(0, end).map(|name| vec![vec![name.to_owned()]]).unwrap_or_default();
        for (before, ways) in ends[..i].iter().zip(&ways) {
            if let Some(name) = part(before + 1, end) {
                here.extend(ways.iter().map(|way| [&way[..], &[name.to_owned()]].concat()));
            }
            here.truncate(2);
        }
        ways.push(here);
    }
    ways.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, known: &[&str]) -> Result<Vec<String>, String> {
        split_names(text, &|name| known.contains(&name)).map_err(|e| e.error.to_string())
    }

    #[test]
    fn names_with_commas_and_blanks_are_told_apart() {
        let known = ["a", "b", "a,b", "c,d", " e ", "f g", "h\\,"];
        let cases: [(&str, &[&str]); 9] = [
            ("c,d", &["c,d"]),
            ("a,c,d,f g", &["a", "c,d", "f g"]),
            (" a , f g ", &["a", "f g"]),
            ("a, b", &["a", "b"]),
            ("a\\,b", &["a,b"]),
            (" e ", &[" e "]),
            ("\\ e\\ ,a", &[" e ", "a"]),
            ("h\\\\\\,", &["h\\,"]),
            ("x,y", &["x", "y"]),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text, &known), Ok(expected.iter().map(|n| (*n).to_owned()).collect()), "{text}");
        }
        assert_eq!(split("a,b", &known), Err("`a,b` can be read as tensors `a\\,b` or `a,b`".to_owned()));
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let names = ["a", "b,c", " d ", "e\\", "", "f g"].map(str::to_owned).to_vec();
        assert_eq!(unescaped(&join_names(&names)), names);
    }

    #[test]
    fn a_name_may_hold_the_mark_before_sizes_and_files() {
        assert_eq!(shapes(&["a=b=1,2".to_owned()]).ok(), Some([("a=b".to_owned(), vec![1, 2])].into()));
    }
}
