//! Jobs as files say them, and what they may be called: the door through which
//! a job comes from a file or from another node. Start at [`read`].

use tierline_train::Job;

/// Bytes of a job's name; it becomes names of files.
pub const NAME_BYTES_MAX: usize = 100;

/// The job that a file's text says.
///
/// # Errors
/// What is wrong, and in which line if that is what is wrong.
pub fn read(text: &str) -> Result<Job, String> {
    toml::from_str(text).map_err(|e: toml::de::Error| {
        let of_all = e.span().is_none_or(|span| span.start == 0 && span.end >= text.trim_end().len());
        if of_all { e.message().to_owned() } else { e.to_string() }
    })
}

/// What a job is called, as a part of a file's name: `NAME.run`, `NAME.onnx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// A name that means the same on every system and in every folder.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_alphanumeric() || " -_.+()[],=@".contains(c);
        let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(plain);
        if fits && !name.starts_with(['.', '-', ' ']) && !name.ends_with(['.', ' ']) {
            return Ok(Self(name.to_owned()));
        }
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        Err(format!(
            "{shown:?} is no name for a job: up to {NAME_BYTES_MAX} bytes of letters, digits, spaces and -_.+()[],=@, \
             a letter or a digit first; rename the job's file"
        ))
    }

    /// That of a job that another node tells of; the first digits of its
    /// digest where its name may not be one here.
    #[must_use]
    pub fn of(name: &str, digest: &str) -> Self {
        Self::new(name).unwrap_or_else(|_| Self(format!("job-{}", &digest[..digest.len().min(8)])))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_no_other_folder() {
        for name in ["digits", "Digits 2", "week_3.v1", "job (copy)", "zürich", "x"] {
            assert_eq!(Name::new(name).map(|n| n.to_string()).as_deref(), Ok(name));
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in
            ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "c:x", ".hidden", "-rf", "x\n", "x\u{1b}[2J", "x ", &long]
        {
            assert!(Name::new(name).is_err(), "{name:?}");
            assert_eq!(Name::of(name, "0123456789abcdef").to_string(), "job-01234567");
        }
    }

    #[test]
    fn a_job_says_what_is_wrong_with_it() {
        let job = |more: &str| {
            let text = "model = 'm.onnx'\nepochs = 1\n[data]\ntrain = 'd'\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n";
            read(&format!("{text}{more}"))
        };
        assert!(job("").is_ok());
        let wrong = job("[federation.cloud]\nclients = { patience_s = 1e20 }\n").unwrap_err();
        assert!(wrong.contains("at most 1e9") && wrong.contains("line"), "{wrong}");
        let wrong = job("[batch]\nsize = 0\n").unwrap_err();
        assert_eq!(wrong, "batch.size is 0; it must be at least 1 and at most 2^24");
    }
}
