//! What is kept in the tree: inputs that once broke something, one file each, below `corpus/<target>`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::Target;

/// The folder of the corpus.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Every kept input of a target, by name.
///
/// # Errors
/// What the system says; a folder that is not there holds none.
pub fn kept(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let entries = match fs::read_dir(folder().join(target.name)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut kept = Vec::new();
    for entry in entries {
        let entry = entry?;
        kept.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    kept.sort();
    Ok(kept)
}

/// Keeps an input that broke something. Returns the file.
///
/// # Errors
/// What the system says.
pub fn keep(target: &Target, input: &[u8]) -> io::Result<PathBuf> {
    let folder = folder().join(target.name);
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{:016x}", input.iter().copied().fold(0xcbf2_9ce4_8422_2325, crate::hash)));
    fs::write(&file, input)?;
    Ok(file)
}
