//! A command that must exit with 0.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, copy, sink};
use tokio::process::Command;

/// So many bytes of its standard error are told.
const TOLD_MAX: u64 = 300;

/// Runs it. It is killed when this is dropped.
pub(super) async fn run(command: &[String], variables: Vec<(String, String)>) -> Result<(), String> {
    let [program, args @ ..] = command else { return Err("the command is empty".to_owned()) };
    let mut child = Command::new(program)
        .args(args)
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = (&mut stderr).take(TOLD_MAX).read_to_end(&mut said).await;
        // What floods its pipe must not block in it.
        let _ = copy(&mut stderr, &mut sink()).await;
    }
    let status = child.wait().await.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&said);
    match (status.success(), said.trim()) {
        (true, _) => Ok(()),
        (false, "") => Err(format!("{program} ended with {status}")),
        (false, said) => Err(format!("{program} ended with {status}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<(), String> {
        run(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()], vec![("WHO".into(), "me".into())])
            .await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_exit_code_decides_and_the_error_is_told() {
        assert_eq!(shell("test \"$WHO\" = me").await, Ok(()));
        let told = shell("echo not yet >&2; exit 3").await.unwrap_err();
        assert!(told.contains("exit status: 3") && told.contains("not yet"), "{told}");
        assert!(run(&["/nonexistent/probe".to_owned()], Vec::new()).await.is_err());
    }
}
