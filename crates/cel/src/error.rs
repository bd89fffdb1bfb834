//! What can be wrong with an expression, when it is compiled and when it runs.

/// Something wrong at a place of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Offset of the character it is about.
    pub at: usize,
    /// What is wrong.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
        }
    }

    /// The fault as upstream's compiler shows it: place, message, the line, and a mark below it.
    fn shown(&self, source: &str) -> String {
        let before: Vec<char> = source.chars().take(self.at).collect();
        let line = before.iter().filter(|c| **c == '\n').count();
        let column = before.iter().rev().take_while(|c| **c != '\n').count();
        let text = source
            .split('\n')
            .nth(line)
            .unwrap_or_default()
            .replace('\t', " ");
        format!(
            "ERROR: <input>:{}:{}: {}\n | {text}\n | {}^",
            line + 1,
            column + 1,
            self.message,
            ".".repeat(column)
        )
    }
}

/// Why an expression cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CompileError {
    /// Everything that is wrong, as upstream's compiler shows it.
    pub text: String,
}

impl CompileError {
    pub(crate) fn of(faults: &[Fault], source: &str) -> Self {
        let shown: Vec<String> = faults.iter().map(|f| f.shown(source)).collect();
        Self {
            text: shown.join("\n"),
        }
    }
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression failed; the text says how.
    #[error("{0}")]
    Failed(String),
    /// The expression cost more than it may.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

impl EvalError {
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }
}
