//! The reader of documents, for the fuzz tests. `rugctl` itself is the binary beside it.

#![allow(dead_code, reason = "the rest of these modules is used by the binary")]

mod document;
mod error;
mod text;

/// Reads documents as `rugctl apply` does. Answers each as it is written by `rugctl get -o yaml`.
///
/// # Errors
/// Every problem.
pub fn rewrite(text: &str) -> Result<Vec<String>, Vec<String>> {
    let documents = document::parse("f.yaml", text, None)?;
    let write = |document: &document::Document| {
        serde_saphyr::to_string(&document::view::Appliance::document(
            &document.appliance,
            document::view::Secrets::Shown,
        ))
    };
    documents.iter().map(|document| write(document).map_err(|error| vec![error.to_string()])).collect()
}
