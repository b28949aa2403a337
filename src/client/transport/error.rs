//! Failures of the transport.

/// Why no answer could be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The form did not leave: no connection came about (DNS, TCP or TLS), or not in time.
    #[error("nothing was sent")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The time for the request ran out after the form had left.
    #[error("no answer in time")]
    TimedOut(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke before the answer was complete.
    #[error("the connection broke before the answer was complete")]
    Broken(#[source] reqwest::Error),
    /// The answer is longer than 64 KiB.
    #[error("the answer is longer than 64 KiB")]
    TooLong,
    /// The answer is compressed in a way that cannot be read: its `Content-Encoding`.
    #[error("the answer is compressed, and cannot be read (Content-Encoding: {0:?})")]
    Compressed(String),
    /// The request is for another origin than the client's: it was not sent.
    #[error("the request is for another origin than this client's, it was not sent")]
    ForeignOrigin,
    /// The request is not one for a token endpoint, or a client other than ours failed.
    #[error("the request was not sent, or the HTTP client failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}
