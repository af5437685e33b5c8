//! Service files.

use std::path::Path;

use handoff::config::Service;

/// Any text is a service, or refused with file, line, column, cause and remedy of each mistake.
pub fn service_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = Path::new("/c/s.toml");
    let name = "s".parse().expect("a name");
    match Service::parse(name, file, text) {
        Ok(service) => {
            assert!(service.binary.is_absolute() && service.working_dir.is_absolute());
            assert!(service.drain_grace_ms <= service.deadline_ms);
            assert!(service.log.files >= 2);
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            assert!(errors.is_sorted_by_key(|error| error.at));
            for error in errors {
                let at = error.at.expect("a place in the text");
                let line = text.split('\n').nth(at.line as usize - 1).expect("a line of the text");
                assert!((1..=line.chars().count() + 1).contains(&(at.column as usize)), "{error}");
                assert!(!error.cause.is_empty() && !error.hint.is_empty());
                assert!(error.to_string().starts_with(&format!("/c/s.toml:{}:{}: ", at.line, at.column)));
            }
        }
    }
}
