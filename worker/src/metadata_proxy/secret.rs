//! The secret that Nova shares: read from its file, looked at again and again, and used for signatures only.

use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use runtime::file::exposure;
use sha2::Sha256;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Longest secret that is read, in bytes.
const MAX_SECRET: u64 = 4_096;

/// What signatures are made with. Never shown.
#[derive(Clone)]
pub(super) struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of every length"))
    }

    /// What proves to Nova that the proxy names this instance, in hexadecimal.
    pub(super) fn sign(&self, instance: &str) -> String {
        let mut mac = self.0.clone();
        mac.update(instance.as_bytes());
        mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The secret as its file last held one.
#[derive(Debug)]
pub(super) struct SharedSecret(watch::Receiver<SigningKey>);

impl SharedSecret {
    /// Reads the file, and goes on to look at it until `stop`.
    ///
    /// # Errors
    /// It holds no secret.
    pub(super) fn follow(file: PathBuf, stop: CancellationToken) -> Result<Self, String> {
        let secret = read(&file)?;
        if let Some(exposed) = exposure(&file) {
            warn!("metadata_proxy.secret_file: {exposed}");
        }
        let (keys, key) = watch::channel(SigningKey::new(&secret));
        tokio::spawn(look(file, secret, keys, stop));
        Ok(Self(key))
    }

    pub(super) fn key(&self) -> SigningKey {
        self.0.borrow().clone()
    }
}

async fn look(file: PathBuf, mut secret: Vec<u8>, keys: watch::Sender<SigningKey>, stop: CancellationToken) {
    // What was last complained about, so that it is done once.
    let mut complained = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let path = file.clone();
        match tokio::task::spawn_blocking(move || read(&path)).await.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(read) => {
                complained = None;
                if read != secret {
                    keys.send_replace(SigningKey::new(&read));
                    secret = read;
                    info!("metadata_proxy.secret_file: the secret has changed");
                }
            }
            Err(problem) => {
                if complained.as_ref() != Some(&problem) {
                    warn!("metadata_proxy.secret_file: {problem}; the former secret stays in force");
                }
                complained = Some(problem);
            }
        }
    }
}

/// What the file holds, without the end of its last line. Not quoted in errors.
fn read(file: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let opened = std::fs::File::open(file).map_err(failed)?;
    if !opened.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is not a plain file", file.display()));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
        bytes.pop();
    }
    match bytes.len() as u64 {
        1..=MAX_SECRET => Ok(bytes),
        _ => Err(format!("{} holds no secret of 1 to {MAX_SECRET} bytes", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_standard_and_the_key_is_not_shown() {
        // RFC 4231, test case 2.
        let key = SigningKey::new(b"Jefe");
        let signature = key.sign("what do ya want for nothing?");
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_secret_is_taken_up_and_none_leaves_the_former_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("secret");
        assert!(SharedSecret::follow(file.clone(), CancellationToken::new()).is_err(), "there is none");
        std::fs::write(&file, "one\n").expect("written");
        let stop = CancellationToken::new();
        let _ended_with_this = stop.clone().drop_guard();
        let mut secret = SharedSecret::follow(file.clone(), stop).expect("a secret");
        let one = SigningKey::new(b"one").sign("i");
        assert_eq!(secret.key().sign("i"), one);
        std::fs::write(&file, "\n").expect("written");
        tokio::time::sleep(LOOK * 3).await;
        assert_eq!(secret.key().sign("i"), one, "an empty file is no secret");
        std::fs::write(&file, "two").expect("written");
        secret.0.changed().await.expect("it is looked at");
        assert_eq!(secret.key().sign("i"), SigningKey::new(b"two").sign("i"));
    }
}
