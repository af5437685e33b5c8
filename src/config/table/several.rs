//! Values that are numbers or lists.

use toml::de::DeValue;

use super::{Section, Spanned};
use crate::config::error::Report;

impl<'t> Section<'t> {
    /// An array of strings without zero bytes, which cannot be arguments of a program.
    pub(in crate::config) fn strings(&self, report: &mut Report, key: &'static str) -> Option<Vec<String>> {
        Some(self.spanned_strings(report, key)?.into_iter().map(|item| item.value).collect())
    }

    /// The same, each with its place.
    pub(in crate::config) fn spanned_strings(
        &self,
        report: &mut Report,
        key: &'static str,
    ) -> Option<Vec<Spanned<String>>> {
        let example = "write [\"one\", \"two\"]";
        let found = self.get(key)?;
        let DeValue::Array(items) = found.value else {
            return self.wrong_type(report, key, found.span, "an array of strings", found.value, example);
        };
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let value = self.plain_string(report, &key, item.span(), item.get_ref())?;
            strings.push(Spanned { value, span: item.span() });
        }
        Some(strings)
    }

    /// A string or an array of strings, each with its place.
    pub(in crate::config) fn one_or_more(
        &self,
        report: &mut Report,
        key: &'static str,
        example: &str,
    ) -> Option<Vec<Spanned<String>>> {
        if self.is_array(key) {
            return self.spanned_strings(report, key);
        }
        let found = self.string(report, key, example)?;
        let value = found.value.to_owned();
        Some(vec![Spanned { value, span: found.span }])
    }

    /// A whole number within `range`, which may be negative.
    pub(in crate::config) fn integer(
        &self,
        report: &mut Report,
        key: &'static str,
        range: std::ops::RangeInclusive<i32>,
    ) -> Option<i32> {
        let hint = format!("write a whole number from {} to {}", range.start(), range.end());
        let found = self.get(key)?;
        let DeValue::Integer(integer) = found.value else {
            return self.wrong_type(report, key, found.span, "a whole number", found.value, &hint);
        };
        match i32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.wrong(report, key, found.span, &format!("{integer} is out of range"), &hint),
        }
    }

    /// All keys of this table with their values, which are strings or whole numbers, as text.
    pub(in crate::config) fn scalars(
        &self,
        report: &mut Report,
        hint: &str,
    ) -> Vec<(Spanned<&'t str>, Spanned<String>)> {
        let mut scalars = Vec::with_capacity(self.table.len());
        for (key, value) in self.table {
            let (name, span): (&str, _) = (key.get_ref(), value.span());
            let text = match value.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                    .ok()
                    .map(|number| number.to_string())
                    .or_else(|| self.wrong(report, name, span.clone(), "is out of range", hint)),
                other => self.wrong_type(report, name, span.clone(), "a number or a string", other, hint),
            };
            let place = Spanned { value: name, span: key.span() };
            scalars.extend(text.map(|value| (place, Spanned { value, span })));
        }
        scalars
    }

    /// An array of whole numbers within `range`.
    pub(in crate::config) fn numbers(
        &self,
        report: &mut Report,
        key: &'static str,
        range: std::ops::RangeInclusive<i32>,
    ) -> Option<Vec<i32>> {
        let hint = format!("write numbers from {} to {}, such as [0, 3]", range.start(), range.end());
        let found = self.get(key)?;
        let DeValue::Array(items) = found.value else {
            return self.wrong_type(report, key, found.span, "an array of numbers", found.value, &hint);
        };
        let mut numbers = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let DeValue::Integer(integer) = item.get_ref() else {
                return self.wrong_type(report, &key, item.span(), "a whole number", item.get_ref(), &hint);
            };
            match i32::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) if range.contains(&number) => numbers.push(number),
                _ => {
                    return self.wrong(
                        report,
                        &key,
                        item.span(),
                        &format!("{integer} is out of range"),
                        &hint,
                    );
                }
            }
        }
        Some(numbers)
    }
}
