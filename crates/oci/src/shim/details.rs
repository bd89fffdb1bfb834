//! libcontainer's errors often say only which step failed; what it logs on the way says why. The
//! processes that build a container therefore report what they would have logged as an error.

use std::fmt::Write;
use std::os::fd::RawFd;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::report::Report;

/// Sends errors to the shim as details.
struct Details {
    report: RawFd,
}

/// From now on errors logged in this process and its children are reported. The descriptor must
/// stay open as long as they live.
pub fn report_errors(report: RawFd) {
    // It can only be set once, by the shim's child that then builds one container.
    let _ = tracing::subscriber::set_global_default(Details { report });
}

impl Subscriber for Details {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields);
        let _ = Report::Detail(line).send(crate::sys::borrow_fd(self.report));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event as `message name=value …`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
