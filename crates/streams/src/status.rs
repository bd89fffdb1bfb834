//! What a client learns at the end of a command: the exit code or the failure, as a
//! `metav1.Status` on the error stream (protocol v4 and later), or as text (before).

use serde_json::{Value, json};

use crate::remotecommand::Exit;

/// The status of an ended command, as JSON.
pub(crate) fn json(exit: &Exit) -> Value {
    match exit {
        Exit::Code(0) => json!({ "metadata": {}, "status": "Success" }),
        Exit::Code(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": text(exit),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Exit::Failed(reason) => json!({
            "metadata": {},
            "status": "Failure",
            "message": text(exit),
            "reason": "InternalError",
            "details": { "causes": [{ "message": reason }] },
            "code": 500,
        }),
    }
}

/// The same as text; empty for success.
pub(crate) fn text(exit: &Exit) -> String {
    match exit {
        Exit::Code(0) => String::new(),
        Exit::Code(code) => {
            format!("command terminated with non-zero exit code: exit status {code}")
        }
        Exit::Failed(reason) => format!("Internal error occurred: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_exit_code_in_the_causes() {
        let status = json(&Exit::Code(3));
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(json(&Exit::Code(0))["status"], "Success");
        let failed = json(&Exit::Failed("no such file".into()));
        assert_eq!(failed["message"], "Internal error occurred: no such file");
    }
}
