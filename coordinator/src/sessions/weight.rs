//! About how much memory a message of a worker takes here, decoded: no less than it does, and not many times more.

use proto::worker::v1::worker_message::Body;
use proto::worker::v1::{Ack, Hello, Release, Report, WorkerMessage};

/// A message without entries: its parts, and its place in a queue.
const MESSAGE: usize = 1_024;

/// A grant that is owned, given or gone, with the room that lists keep to grow.
const GRANT: usize = 160;

/// A release without what is in its progress.
const RELEASE: usize = 384;

/// A text without its characters.
const TEXT: usize = 32;

/// A status without its texts.
const STATUS: usize = 512;

/// Bytes that a message takes.
pub fn of(message: &WorkerMessage) -> usize {
    let body = match &message.body {
        Some(Body::Hello(hello)) => hello_bytes(hello),
        Some(Body::Ack(ack)) => ack_bytes(ack),
        Some(Body::Report(report)) => report_bytes(report),
        // Short fields become large ones.
        Some(Body::Answer(answer)) => 4 * prost::Message::encoded_len(answer),
        Some(Body::Beat(_) | Body::Leave(_) | Body::Drain(_)) | None => 0,
    };
    MESSAGE + body
}

fn hello_bytes(hello: &Hello) -> usize {
    let grants = hello.held.len() + hello.gone.len();
    let profile = hello.profile.as_ref().map_or(0, |profile| 4 * prost::Message::encoded_len(profile));
    grants * GRANT + hello.released.iter().map(release_bytes).sum::<usize>() + profile
}

fn ack_bytes(ack: &Ack) -> usize {
    let grants = ack.granted.len() + ack.gone.len() + ack.begun.len() + ack.ended.len() + ack.quiet.len();
    let declined: usize = ack.declined.iter().map(|declined| GRANT + declined.reason.len()).sum();
    grants * GRANT + declined + ack.released.iter().map(release_bytes).sum::<usize>()
}

fn release_bytes(release: &Release) -> usize {
    let progress = release.progress.as_ref().map_or(0, |progress| {
        let entry = |entry: &proto::worker::v1::JournalEntry| 2 * TEXT + entry.step.len() + entry.request_id.len();
        progress.attempts.len() * size_of::<u32>() + progress.journal.iter().map(entry).sum::<usize>()
    });
    RELEASE + progress
}

fn report_bytes(report: &Report) -> usize {
    // Statuses are nested, and small fields become large ones.
    (report.appliances.len() + report.runs.len()) * STATUS + 4 * prost::Message::encoded_len(report)
}

#[cfg(test)]
mod tests {
    use proto::worker::v1::{Held, JournalEntry, Progress};

    use super::*;

    #[test]
    fn what_is_carried_weighs_and_empty_entries_do_too() {
        let hello = |hello| WorkerMessage { envelope: None, body: Some(Body::Hello(hello)) };
        let owned = hello(Hello { held: vec![Held::default(); 1_000], ..Hello::default() });
        assert!((128_000..200_000).contains(&of(&owned)), "100,000 grants are some 13 MB: {}", of(&owned));
        let journal = vec![JournalEntry { step: "s".repeat(4_000), request_id: String::new() }; 64];
        let progress = Some(Progress { journal, ..Progress::default() });
        let released = vec![Release { progress, ..Release::default() }; 10];
        assert!(of(&hello(Hello { released, ..Hello::default() })) > 10 * 64 * 4_000);
        let empty = Progress { journal: vec![JournalEntry::default(); 64], ..Progress::default() };
        let released = vec![Release { progress: Some(empty), ..Release::default() }; 1_000];
        let ack = WorkerMessage { envelope: None, body: Some(Body::Ack(Ack { released, ..Ack::default() })) };
        assert!(of(&ack) > 1_000 * 64 * 2 * size_of::<String>());
    }
}
