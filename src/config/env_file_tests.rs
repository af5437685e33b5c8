use super::*;

fn variables(text: &str) -> Vec<(String, String)> {
    parse(text.as_bytes()).unwrap()
}

fn value(text: &str) -> String {
    let [(name, value)] = variables(text).try_into().expect("one variable");
    assert_eq!(name, "K", "{text}");
    value
}

#[test]
fn values_with_and_without_quotes() {
    for (text, expected) in [
        ("K=", ""),
        ("K=v", "v"),
        ("  export K=v  ", "v"),
        ("K = v w \r\n", "v w"),
        ("\u{feff}K=a#b", "a#b"),
        ("K=a # b", "a"),
        ("K=# b", ""),
        ("K=$HOME/`x` \"y\"", "$HOME/`x` \"y\""),
        ("K=C:\\dir\\x", "C:\\dir\\x"),
        ("K='a \\n # \"b'", "a \\n # \"b"),
        ("K=\"a\\n\\t\\\"\\\\\\$\\x\" # c", "a\n\t\"\\$\\x"),
        ("K=\"first\nsecond # no comment\r\nthird\"", "first\nsecond # no comment\nthird"),
        ("# c\n; c\n\nK=ä=b\n\n", "ä=b"),
    ] {
        assert_eq!(value(text), expected, "{text:?}");
    }
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(variables("A=1\nB='x\ny'\nA=2"), [pair("A", "1"), pair("B", "x\ny"), pair("A", "2")]);
    assert_eq!(variables(""), []);
}

#[test]
fn each_mistake_has_its_place_and_no_value() {
    for (text, line, column, cause) in [
        ("A=1\n  secret\n", 2, 3, "no '='"),
        ("1A=secret", 1, 1, "no name"),
        ("A B=secret", 1, 1, "no name"),
        ("=secret", 1, 1, "no name"),
        ("A=1\nB=\"secret\nC=2\n", 2, 3, "not closed"),
        ("A='x' secret", 1, 6, "after the closing quote"),
        ("A=secret\\\nB=1", 1, 10, "backslash"),
        ("A=1\0secret", 1, 4, "zero byte"),
    ] {
        let [error] = parse(text.as_bytes()).unwrap_err().try_into().expect("one mistake");
        assert_eq!(error.at, Some(Position { line, column }), "{text:?}: {error}");
        let told = error.to_string();
        assert!(told.contains(cause) && !told.contains("secret"), "{text:?}: {told}");
    }
    assert_eq!(parse(b"no\nA=1\nneither").unwrap_err().len(), 2);
    assert!(parse(b"A=\xff").unwrap_err()[0].to_string().contains("UTF-8"));
}

#[test]
fn a_file_is_read_within_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.env");
    let at = Position { line: 3, column: 12 };
    let file = |is_optional| EnvFile { path: path.clone(), is_optional, at };
    let read = |is_optional| file(is_optional).read(Path::new("/c/web.toml"));
    assert_eq!(read(true), Ok(Vec::new()));
    let told = read(false).unwrap_err()[0].to_string();
    assert!(told.starts_with("/c/web.toml:3:12: env_file:") && told.contains("does not exist"), "{told}");
    std::fs::write(&path, "K=v\n").unwrap();
    assert_eq!(read(false).unwrap().len(), 1);
    std::fs::write(&path, "K=v\nno").unwrap();
    let told = read(true).unwrap_err()[0].to_string();
    assert!(told.starts_with(&format!("{}:2:1: this line", path.display())), "{told}");
    std::fs::write(&path, "#".repeat(LARGEST_FILE_BYTES as usize + 1)).unwrap();
    assert!(read(false).unwrap_err()[0].to_string().contains("larger than"));
    std::fs::write(&path, "K=v").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    assert!(read(false).unwrap_err()[0].to_string().contains("world-writable"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(read(true).unwrap_err()[0].to_string().contains("cannot be read"));
}
