//! Names of services on the command line.

use handoff_protocol::ids::ServiceName;

/// Reads the name of a service. `web.service` is `web`, as systemctl has it.
pub(super) fn service(text: &str) -> Result<ServiceName, String> {
    let name = text.strip_suffix(".service").filter(|name| !name.is_empty()).unwrap_or(text);
    name.parse().map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::service;

    #[test]
    fn the_ending_of_a_unit_is_no_part_of_the_name() {
        assert_eq!(service("web.service").unwrap().as_str(), "web");
        assert_eq!(service("web").unwrap().as_str(), "web");
        for wrong in [".service", "web.socket", "../web", "web.service.service"] {
            assert!(service(wrong).is_err(), "{wrong}");
        }
    }
}
