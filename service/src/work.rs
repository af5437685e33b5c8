//! Runs the server's own code, and converts a panic to an error.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::BoxError;
use handoff_crash_points::crash_point;

/// The result of the server's own code. The error text is for people.
pub(super) type Done = Result<(), String>;

/// Runs `code`. After a panic the server's state is unknown: it is asked to resume, or ended.
pub(super) fn run(what: &str, code: impl FnOnce() -> Result<(), BoxError>) -> Done {
    let code = || {
        crash_point!("library/incumbent/code.{what}.begins");
        let result = code();
        crash_point!("library/incumbent/code.{what}.ends");
        result
    };
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => Err(panic_text(&*payload)),
    }
}

pub(super) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_become_texts() {
        assert_eq!(run("drain", || Ok(())), Ok(()));
        assert_eq!(run("drain", || Err("disk".into())), Err("disk".to_owned()));
        assert_eq!(run("drain", || panic!("at {}", 7)), Err("panicked: at 7".to_owned()));
    }
}
