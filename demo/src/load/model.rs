//! A client's model of its objects, to check the server's responses.
//!
//! A write with a failed response may have happened or not. Until the next acknowledged write, both are correct.

use std::collections::BTreeMap;

use super::content::Content;
use super::failure::{Failure, Kind};

/// The objects of one client.
#[derive(Debug, Default)]
pub struct Model {
    objects: BTreeMap<String, Object>,
}

#[derive(Debug)]
struct Object {
    /// Possible present states: `None` is no object. Never empty; one entry if the state is certain.
    may_be: Vec<Option<Content>>,
    /// Earlier states, to distinguish a lost write from wrong bytes.
    was: Vec<Option<Content>>,
}

impl Default for Object {
    fn default() -> Self {
        Self { may_be: vec![None], was: Vec::new() }
    }
}

impl Model {
    /// Records an acknowledged write; `None` for a deletion.
    pub fn wrote(&mut self, key: &str, state: Option<Content>) {
        let object = self.objects.entry(key.to_owned()).or_default();
        let before = std::mem::replace(&mut object.may_be, vec![state]);
        object.was.extend(before);
    }

    /// Records an attempted write with an unknown result.
    pub fn tried(&mut self, key: &str, state: Option<Content>) {
        self.objects.entry(key.to_owned()).or_default().may_be.push(state);
    }

    /// Every key that was ever written.
    pub fn keys(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    /// Checks the response to a GET: the whole body, or `None` for "no such key".
    ///
    /// # Errors
    ///
    /// It differs from the last write.
    pub fn check_body(&self, key: &str, body: Option<&[u8]>) -> Result<(), Failure> {
        let describe = || match body {
            Some(bytes) => format!("GET {key} gave {} bytes", bytes.len()),
            None => format!("GET {key} found nothing"),
        };
        self.judge(key, describe, |state| match (state, body) {
            (Some(content), Some(bytes)) => content.is(bytes),
            (None, None) => true,
            _ => false,
        })
    }

    /// Checks the response to a HEAD: the length, or `None` for "no such key".
    ///
    /// # Errors
    ///
    /// It differs from the length of the last write.
    pub fn check_length(&self, key: &str, length: Option<usize>) -> Result<(), Failure> {
        let describe = || format!("HEAD {key} said {length:?}");
        self.judge(key, describe, |state| state.map(|content| content.length) == length)
    }

    /// Checks a listing of all objects whose key begins with `prefix`.
    ///
    /// # Errors
    ///
    /// An object is missing, unexpected, or has a different length.
    pub fn check_list(&self, prefix: &str, listed: &BTreeMap<String, usize>) -> Result<(), Failure> {
        let known = self.objects.range(prefix.to_owned()..).map(|(key, _)| key);
        let known = known.take_while(|key| key.starts_with(prefix));
        for key in known.chain(listed.keys()) {
            let length = listed.get(key).copied();
            let describe = || format!("LIST {prefix} said {length:?} of {key}");
            self.judge(key, describe, |state| state.map(|content| content.length) == length)?;
        }
        Ok(())
    }

    fn judge(
        &self,
        key: &str,
        describe: impl Fn() -> String,
        fits: impl Fn(Option<Content>) -> bool,
    ) -> Result<(), Failure> {
        let unwritten = Object::default();
        let object = self.objects.get(key).unwrap_or(&unwritten);
        if object.may_be.iter().any(|state| fits(*state)) {
            return Ok(());
        }
        let stale = object.was.iter().any(|state| fits(*state));
        let kind = if stale { Kind::Lost } else { Kind::Wrong };
        Err(Failure::new(kind, format!("{}, expected {:?}", describe(), object.may_be)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Content = Content { seed: 1, length: 10 };
    const NEW: Content = Content { seed: 2, length: 20 };

    fn kind(result: Result<(), Failure>) -> Option<Kind> {
        result.err().map(|failure| failure.kind)
    }

    #[test]
    fn a_lost_write_and_wrong_bytes_are_told_apart() {
        let mut model = Model::default();
        model.wrote("a", Some(OLD));
        model.wrote("a", Some(NEW));
        assert_eq!(kind(model.check_body("a", Some(&NEW.bytes()))), None);
        assert_eq!(kind(model.check_body("a", Some(&OLD.bytes()))), Some(Kind::Lost));
        assert_eq!(kind(model.check_body("a", None)), Some(Kind::Lost));
        assert_eq!(kind(model.check_body("a", Some(b"else"))), Some(Kind::Wrong));
        assert_eq!(kind(model.check_body("b", Some(b"stray"))), Some(Kind::Wrong));
        assert_eq!(kind(model.check_length("a", Some(20))), None);
        assert_eq!(kind(model.check_length("a", Some(10))), Some(Kind::Lost));
        assert_eq!(kind(model.check_length("a", Some(11))), Some(Kind::Wrong));
        model.wrote("a", None);
        assert_eq!(kind(model.check_body("a", None)), None);
        assert_eq!(kind(model.check_body("a", Some(&NEW.bytes()))), Some(Kind::Lost), "a lost deletion");
    }

    #[test]
    fn after_a_failed_write_both_are_right_until_the_next() {
        let mut model = Model::default();
        model.wrote("a", Some(OLD));
        model.tried("a", Some(NEW));
        assert_eq!(kind(model.check_body("a", Some(&OLD.bytes()))), None);
        assert_eq!(kind(model.check_body("a", Some(&NEW.bytes()))), None);
        assert_eq!(kind(model.check_body("a", None)), Some(Kind::Lost));
        model.wrote("a", Some(NEW));
        assert_eq!(kind(model.check_body("a", Some(&OLD.bytes()))), Some(Kind::Lost));
    }

    #[test]
    fn listings_are_complete_and_no_more() {
        let mut model = Model::default();
        model.wrote("d/a", Some(OLD));
        model.wrote("d/b", Some(NEW));
        model.wrote("d/gone", None);
        model.wrote("e/other", Some(OLD));
        let list = |entries: &[(&str, usize)]| {
            let listed = entries.iter().map(|(key, length)| ((*key).to_owned(), *length)).collect();
            kind(model.check_list("d/", &listed))
        };
        assert_eq!(list(&[("d/a", 10), ("d/b", 20)]), None);
        assert_eq!(list(&[("d/a", 10)]), Some(Kind::Lost));
        assert_eq!(list(&[("d/a", 10), ("d/b", 21)]), Some(Kind::Wrong));
        assert_eq!(list(&[("d/a", 10), ("d/b", 20), ("d/stray", 1)]), Some(Kind::Wrong));
    }
}
