//! A bearer token from a file, which others keep fresh.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};

use crate::error::Failure;

/// Longest file that is read; servers read tokens of at most 8 KiB.
const MAX_FILE: u64 = 64 << 10;

/// The file with the token. Read anew for each call: whoever renews the token replaces the file.
#[derive(Clone, Debug)]
pub(crate) struct TokenFile(Arc<PathBuf>, &'static str);

impl TokenFile {
    /// A token in this file, which `setting` names.
    ///
    /// # Errors
    /// It cannot be read, or holds no token.
    pub(crate) fn open(path: PathBuf, setting: &'static str) -> Result<Self, Failure> {
        let file = Self(Arc::new(path), setting);
        file.header()?;
        Ok(file)
    }

    /// The value of the header `authorization`.
    ///
    /// # Errors
    /// The file cannot be read, or holds no token. The token is not quoted.
    pub(super) fn header(&self) -> Result<MetadataValue<Ascii>, Failure> {
        let failed =
            |problem: &dyn std::fmt::Display| Failure::usage(format!("{}: {}: {problem}", self.1, self.0.display()));
        let mut text = String::new();
        let file = std::fs::File::open(&*self.0).map_err(|e| failed(&e))?;
        file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| failed(&e))?;
        let token = text.trim();
        if token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(failed(&"holds no token: it must be one line without spaces"));
        }
        let mut header: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| failed(&"holds no token"))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn a_token_is_read_anew_and_never_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        assert_eq!(TokenFile::open(path.clone(), "--token-file").expect_err("missing").exit, Exit::Usage);
        std::fs::write(&path, "abc.def.ghi\n").expect("written");
        let file = TokenFile::open(path.clone(), "--token-file").expect("a token");
        assert_eq!(file.header().expect("a token").to_str().expect("ASCII"), "Bearer abc.def.ghi");
        assert!(!format!("{:?}", file.header()).contains("abc"));
        std::fs::write(&path, "new\n").expect("written");
        assert_eq!(file.header().expect("a token").to_str().expect("ASCII"), "Bearer new");
        for odd in ["", " \n", "two words", "s\u{e9}cret"] {
            std::fs::write(&path, odd).expect("written");
            let problem = file.header().expect_err("no token").to_string();
            assert!(problem.contains("holds no token") && !problem.contains("words"), "{problem}");
        }
    }
}
