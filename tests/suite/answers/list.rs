//! What `list` and `status` report in addition to the services.

use std::fs;

use super::say;
use crate::support::Rig;

#[test]
fn list_reports_files_whose_names_no_service_can_have() {
    let rig = Rig::new();
    let services = rig.path("config/services");
    for name in ["My Service.toml", ".hidden.toml", "s.toml.bak"] {
        fs::write(services.join(name), "").unwrap();
    }
    for verb in ["list", "status"] {
        let told = say(&rig, &[verb]).stdout;
        assert!(told.contains("My Service.toml: \"My Service\" is no service name"), "{told}");
        assert!(!told.contains("hidden") && !told.contains("bak"), "{told}");
        let object: serde_json::Value = serde_json::from_str(&say(&rig, &[verb, "--json"]).stdout).unwrap();
        assert_eq!(object["services"], serde_json::json!([]));
        assert_eq!(object["errors"].as_array().unwrap().len(), 1, "{object}");
        assert!(object["errors"][0]["hint"].as_str().unwrap().contains("rename the file"), "{object}");
    }
}
