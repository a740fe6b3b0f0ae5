//! A command that an operator runs in an instance, as its driver hands it over.

use common::execution::ExecEnd;
use tokio::sync::mpsc;

/// Pieces of input, and of output, that wait to be taken.
const PIECES: usize = 2;

/// Input of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    /// A piece of at most [`MAX_PIECE`](common::execution::MAX_PIECE) bytes.
    Data(Vec<u8>),
    /// There is no more.
    Ends,
}

/// What a command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// A piece of its standard output, of at most [`MAX_PIECE`](common::execution::MAX_PIECE) bytes.
    Stdout(Vec<u8>),
    /// The same of its standard error.
    Stderr(Vec<u8>),
    /// It is over, and nothing of it is left.
    Ended(ExecEnd),
}

/// A command that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct Execution {
    /// Its input. Closed where the command takes no more.
    pub input: mpsc::Sender<ExecInput>,
    /// What it says, with its end at last.
    pub output: mpsc::Receiver<ExecOutput>,
}

/// The driver's ends of an execution.
#[derive(Debug)]
pub(super) struct ExecutionEnds {
    pub(super) input: mpsc::Receiver<ExecInput>,
    pub(super) output: mpsc::Sender<ExecOutput>,
}

impl Execution {
    /// An execution, and the driver's ends of it.
    pub(super) fn new() -> (Self, ExecutionEnds) {
        let ((input, given), (said, output)) = (mpsc::channel(PIECES), mpsc::channel(PIECES));
        (Self { input, output }, ExecutionEnds { input: given, output: said })
    }
}
