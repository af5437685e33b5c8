//! Runs every input in `fuzz/corpus` through the check of its fuzz target.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn every_input_that_is_kept_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let directory = corpus.join(name);
        let mut inputs = 0;
        for entry in
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            // The output of a test appears only if it fails.
            println!("{}", path.display());
            target(&input);
            inputs += 1;
        }
        assert!(inputs > 5, "only {inputs} inputs for {name}");
    }
}
