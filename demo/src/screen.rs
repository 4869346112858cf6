//! What is shown while it runs: lines that stay, and a spinner below.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Lines that stay, and a spinner below.
pub struct Screen(ProgressBar);

impl Default for Screen {
    fn default() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Screen {
    /// Says what is being done, until the next word.
    pub fn doing(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }

    /// A line that stays.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.0.is_hidden() {
            eprintln!("{}", text.as_ref());
        } else {
            self.0.println(text);
        }
    }

    /// Takes the spinner away.
    pub fn done(&self) {
        self.0.finish_and_clear();
    }
}
