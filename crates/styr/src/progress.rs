//! Shows the steps of a start: a live display on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(80);

/// A display of steps.
pub struct Steps {
    spinner: Option<ProgressBar>,
}

impl Steps {
    /// Begins a display; `first` is what is going on now.
    pub fn begin(first: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_message(first.to_owned());
            bar.enable_steady_tick(TURN);
            bar
        });
        Self { spinner }
    }

    /// A step is finished.
    pub fn done(&self, name: &str, took: Duration) {
        let line = format!("{} {name} {}", self.tick(), took_text(took));
        match &self.spinner {
            Some(bar) => bar.println(line),
            // Nobody may be reading any more; the start goes on all the same.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    fn tick(&self) -> &'static str {
        if self.spinner.is_some() {
            "\x1b[32m✓\x1b[0m"
        } else {
            "-"
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
    }
}

/// A duration in the unit a reader expects: `12 ms`, `1.24 s`.
pub fn took_text(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.2} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(took_text(Duration::from_millis(12)), "12 ms");
        assert_eq!(took_text(Duration::from_millis(1_240)), "1.24 s");
    }
}
