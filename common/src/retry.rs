//! Which failures are worth another try. Errors implement [`Retryable`]; the one retry loop of a binary asks it instead
//! of matching on messages.

/// Tells whether the same call may succeed later without anything else being changed.
pub trait Retryable {
    /// `true` when another try makes sense.
    fn is_retryable(&self) -> bool;
}
