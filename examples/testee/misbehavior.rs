//! Processes that break the protocol, each in a different way. They implement it by hand.

use std::time::Duration;

use handoff::sys::channel::Channel;
use handoff::sys::inherit::take_channel;
use handoff::sys::process::{Signal, is_stopped, parent_of};
use handoff::sys::signals::send_plain;
use handoff::sys::wire::{recv_message, send_message};
use handoff_protocol::frame::FRAME_MAX;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Done, FromService, Hello, Ready, ToService};
use handoff_protocol::version::{UNAGREED, VersionRange};
use handoff_service::BoxError;

pub fn run(fault: &str) -> Result<(), BoxError> {
    let channel = take_channel()?.ok_or("no supervisor")?;
    let id: HandoffId = std::env::var("HANDOFF_ID")?.parse()?;
    match fault {
        "rude-garbage" => channel.send(b"GET / HTTP/1.1\r\n\r\n and so on, and so on", &[])?,
        "rude-too-long" => channel.send(&vec![0x68; FRAME_MAX + 1], &[])?,
        "rude-version" => hello(&channel, id, VersionRange { minimum: 90, current: 99 })?,
        "rude-wrong-id" => hello(&channel, HandoffId::NIL, VersionRange::OURS)?,
        "rude-hang-up" => drop(channel),
        "rude-twice" => send_ready_twice(&channel, id)?,
        "rude-deaf" => stop_reading(channel, id)?,
        other => return Err(format!("no such fault: {other}").into()),
    }
    loop {
        std::thread::park();
    }
}

fn hello(channel: &Channel, id: HandoffId, versions: VersionRange) -> Result<(), BoxError> {
    let hello = FromService::Hello(Hello { versions, pid: std::process::id() });
    Ok(send_message(channel, UNAGREED, id, &hello, &[])?)
}

/// Sends `Ready` twice. The supervisor is stopped meanwhile, so that it finds both: on a busy machine the first could
/// be committed before the second is sent.
fn send_ready_twice(channel: &Channel, id: HandoffId) -> Result<(), BoxError> {
    let version = parked(channel, id)?;
    let supervisor = parent_of(std::process::id()).ok_or("no parent")?;
    send_plain(supervisor, Signal::SIGSTOP);
    while !is_stopped(supervisor) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = ready(channel, version, id).and_then(|()| ready(channel, version, id));
    send_plain(supervisor, Signal::SIGCONT);
    sent
}

/// Becomes the incumbent, and then stops reading.
fn stop_reading(channel: Channel, id: HandoffId) -> Result<(), BoxError> {
    let version = parked(&channel, id)?;
    ready(&channel, version, id)?;
    recv_message::<ToService>(&channel, version)?.ok_or("closed")?;
    drop(channel);
    Ok(())
}

/// Proceeds until `Begin`. Returns the agreed version.
fn parked(channel: &Channel, id: HandoffId) -> Result<u16, BoxError> {
    hello(channel, id, VersionRange::OURS)?;
    let (_, welcome, _) = recv_message::<ToService>(channel, UNAGREED)?.ok_or("closed")?;
    let ToService::Welcome(welcome) = welcome else { return Err("no welcome".into()) };
    let version = welcome.version;
    recv_message::<ToService>(channel, version)?.ok_or("closed")?;
    send_message(channel, version, id, &FromService::Prepared(Done {}), &[])?;
    recv_message::<ToService>(channel, version)?.ok_or("closed")?;
    Ok(version)
}

fn ready(channel: &Channel, version: u16, id: HandoffId) -> Result<(), BoxError> {
    let ready = FromService::Ready(Ready { healthy: true, reason: String::new() });
    Ok(send_message(channel, version, id, &ready, &[])?)
}
