//! Commands that operators run in instances of this worker: each is named by the number of the inquiry that began it, on its stream.
//!
//! An execution is ended by being dropped: with its stream, when nobody waits for it any more, and when its end was told. That it ends with the
//! right to run it is for its driver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::execution::{Bytes, ExecAnswer, ExecCommand, ExecEnd, ExecStep, MAX_EXECUTIONS};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use worker_core::desired::boot_digest;

use crate::drivers::Error;
use crate::drivers::execution::{ExecInput, ExecOutput};
use crate::gate::SharedGate;
use crate::offer::Drivers;

/// How long an answer waits for output, or for room for input: less than the leader waits for one.
const WAIT: Duration = Duration::from_secs(5);

/// The executions of one stream. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Executions {
    open: Arc<Mutex<HashMap<u64, Arc<OpenExecution>>>>,
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct OpenExecution {
    input: AsyncMutex<Option<mpsc::Sender<ExecInput>>>,
    output: AsyncMutex<mpsc::Receiver<ExecOutput>>,
    /// Nobody waits for it any more.
    ended: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Executions {
    pub(super) fn new() -> Self {
        Self { open: Arc::default(), places: Arc::new(Semaphore::new(MAX_EXECUTIONS)) }
    }

    /// Ends all of them.
    pub(super) fn end(&self) {
        self.open().clear();
    }

    /// Answers one step, which came with the inquiry of this number.
    pub(super) async fn answer(
        &self,
        number: u64,
        step: ExecStep,
        gate: &Arc<SharedGate>,
        drivers: Option<&Drivers>,
    ) -> ExecAnswer {
        match step {
            ExecStep::Begin(command) => match self.begin(number, &command, gate, drivers).await {
                Ok(()) => ExecAnswer::Begun,
                Err(why) => ExecAnswer::Refused(why),
            },
            ExecStep::Input { execution, data, ends } => match self.get(execution) {
                Some(open) => ExecAnswer::Taken(open.take(data, ends).await),
                None => over(),
            },
            ExecStep::Output { execution } => match self.get(execution) {
                Some(open) => {
                    let said = open.say().await;
                    if matches!(said, ExecAnswer::Ended(_)) {
                        self.open().remove(&execution);
                    }
                    said
                }
                None => over(),
            },
            ExecStep::End { execution } => {
                if let Some(open) = self.open().remove(&execution) {
                    open.ended.cancel();
                }
                over()
            }
        }
    }

    async fn begin(
        &self,
        number: u64,
        asked: &ExecCommand,
        gate: &Arc<SharedGate>,
        drivers: Option<&Drivers>,
    ) -> Result<(), String> {
        let ExecCommand { appliance, token, desired, ordinal, command, limit } = asked;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| format!("{MAX_EXECUTIONS} commands run on this worker already"))?;
        let driver = drivers.and_then(|drivers| drivers.offer(&desired.driver)).map(|offer| Arc::clone(&offer.driver));
        let driver = driver.ok_or_else(|| format!("driver {} is not offered here", desired.driver))?;
        let permit = gate.pass_for_operator(*appliance, *token).map_err(|shut| shut.to_string())?;
        let text = |error: Error| error.to_string();
        let running = driver.observe(*appliance).await.map_err(text)?.running;
        let instance = running.into_iter().filter(|instance| instance.ordinal == *ordinal);
        let instance = instance.max_by_key(|instance| instance.attempt);
        let instance = instance.ok_or_else(|| format!("instance {ordinal} does not run"))?;
        // What it runs with would be another thing than what is known here.
        if instance.boot_digest != boot_digest(desired, driver.plugs_ports()) {
            return Err(format!("instance {ordinal} is of an earlier specification, and is to be replaced"));
        }
        let execution = driver.execute(&permit, &instance, desired, command, *limit).await.map_err(text)?;
        info!(%appliance, %token, ordinal, number, "an operator runs a command in an instance");
        let open = OpenExecution {
            input: AsyncMutex::new(Some(execution.input)),
            output: AsyncMutex::new(execution.output),
            ended: CancellationToken::new(),
            _place: place,
        };
        self.open().insert(number, Arc::new(open));
        Ok(())
    }

    fn get(&self, execution: u64) -> Option<Arc<OpenExecution>> {
        self.open().get(&execution).cloned()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenExecution>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenExecution {
    /// Gives input. `false` where the command takes none for a while.
    async fn take(&self, Bytes(data): Bytes, ends: bool) -> bool {
        let mut input = self.input.lock().await;
        let Some(sender) = input.as_ref() else { return true };
        if !data.is_empty() {
            match timeout(WAIT, sender.reserve()).await {
                Ok(Ok(room)) => room.send(ExecInput::Data(data)),
                // It takes no more, and whoever gives it need not know.
                Ok(Err(_)) => return true,
                Err(_) => return false,
            }
        }
        if ends {
            // Its end is seen by that no more can come.
            *input = None;
        }
        true
    }

    /// The next that it says.
    async fn say(&self) -> ExecAnswer {
        let next = async { self.output.lock().await.recv().await };
        let next = timeout(WAIT, next);
        let Some(next) = self.ended.run_until_cancelled(next).await else { return over() };
        match next {
            Ok(Some(ExecOutput::Stdout(data))) => ExecAnswer::Stdout(Bytes(data)),
            Ok(Some(ExecOutput::Stderr(data))) => ExecAnswer::Stderr(Bytes(data)),
            Ok(Some(ExecOutput::Ended(end))) => ExecAnswer::Ended(end),
            Ok(None) => ExecAnswer::Ended(ExecEnd::Stopped("it broke off".to_owned())),
            Err(_) => ExecAnswer::Nothing,
        }
    }
}

/// What is said of an execution that is not there.
fn over() -> ExecAnswer {
    ExecAnswer::Ended(ExecEnd::Stopped("it is over".to_owned()))
}
