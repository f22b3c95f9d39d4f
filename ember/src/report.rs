//! What people read: the only place of the product that prints.

use std::io::{IsTerminal, Write};

/// A line on standard output. A reader that went away is no error.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// An error on standard error.
pub(crate) fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "ember: {text}");
}

/// Progress: one line that is overwritten on a terminal; elsewhere nothing is printed.
pub(crate) fn progress(text: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}");
        let _ = err.flush();
    }
}

/// Clears the progress line.
pub(crate) fn progress_done() {
    progress("");
}
