//! Certificates as docs/tls.md says to make them: by the script of the documentation.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use runtime::tls::{self, ClientTls};
use tokio::process::Command;

/// A folder with a CA and certificates.
#[derive(Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes or renews certificates of these names, all for 127.0.0.1.
    ///
    /// # Errors
    /// When the script fails.
    pub async fn make(folder: PathBuf, names: &[&str]) -> Result<Self> {
        let made = Self(folder);
        made.script(names.iter().map(|name| format!("{name},127.0.0.1"))).await?;
        Ok(made)
    }

    /// Revokes what was issued for these names, and makes the list anew: [`Self::list`].
    ///
    /// # Errors
    /// When the script fails.
    pub async fn revoke(&self, names: &[&str]) -> Result<()> {
        self.script(["--revoke"].iter().chain(names).map(ToString::to_string)).await
    }

    async fn script(&self, arguments: impl Iterator<Item = String>) -> Result<()> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/make-certificates.sh");
        let ended = Command::new("sh").arg(script).arg(&self.0).args(arguments).output().await?;
        ensure!(ended.status.success(), "make-certificates.sh: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The list of what was revoked.
    #[must_use]
    pub fn list(&self) -> PathBuf {
        self.0.join("crl.pem")
    }

    /// A file of a name: `ca.pem`, `cert.pem` or `key.pem`.
    #[must_use]
    pub fn file(&self, name: &str, file: &str) -> PathBuf {
        self.0.join(name).join(file)
    }

    /// The same as text.
    #[must_use]
    pub fn shown(&self, name: &str, file: &str) -> String {
        self.file(name, file).display().to_string()
    }

    /// `[tls]` of a binary whose variables begin with `prefix`.
    #[must_use]
    pub fn variables(&self, prefix: &str, name: &str) -> Vec<(String, String)> {
        let files = [("CA", "ca.pem"), ("CERT", "cert.pem"), ("KEY", "key.pem")];
        let variable = |(field, file)| (format!("{prefix}_TLS__{field}"), self.shown(name, file));
        files.map(variable).into()
    }

    /// Flags of `rugctl`.
    #[must_use]
    pub fn flags(&self, name: &str) -> Vec<String> {
        let files = [("--tls-ca", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")];
        files.into_iter().flat_map(|(flag, file)| [flag.to_owned(), self.shown(name, file)]).collect()
    }

    /// What a client shows.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn client(&self, name: &str) -> Result<ClientTls> {
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|file| self.file(name, file));
        let config = tls::Config { ca, cert, key, ..tls::Config::default() };
        ClientTls::load(&config)?.context("all files are named")
    }
}
