//! Another mark than before: what the former one recorded is carried over before anything is read.

use tracing::{info, warn};

use super::{OpenError, SessionBuilder};
use crate::mark::FencingToken;
use crate::mark::change::{self, Carried, CarryError, Change};
use crate::observe::status::State;
use crate::postgres::catalog::Table;
use crate::postgres::compatibility::{Incompatibility, mark_name};
use crate::state::{OutboxState, StateTable};

impl SessionBuilder<'_> {
    /// Records the mark, once it knows what the former one knew.
    ///
    /// Errors: `Halt` where nothing can tell the new mark which rows were sent.
    pub(super) async fn change_mark(
        &self,
        table: &Table,
        states: &StateTable<'_>,
        token: &FencingToken,
        state: &OutboxState,
    ) -> Result<(), OpenError> {
        let (client, source) = (states.client, &self.config.source);
        match change::judge(client, states.outbox, source, table).await? {
            Change::Unchanged => return Ok(()),
            Change::Record => {}
            Change::Carry(what) => {
                let mark = mark_name(source.mark);
                warn!(
                    mark,
                    "the mark is another one: what was sent is entered into it"
                );
                self.status.state(
                    State::Waiting,
                    "carrying over what the former mark recorded",
                );
                let carried = Carried {
                    outbox: states.outbox,
                    generation: state.generation,
                    table,
                    token,
                };
                let done = change::carry(client, what, &carried).await;
                done.map_err(|failure| match failure {
                    CarryError::Kept { .. } => OpenError::Halt {
                        reason: failure.to_string(),
                        remedy: "drop that trigger or rule, or go on with source.mark = \"ledger\""
                            .to_owned(),
                    },
                    other => other.into(),
                })?;
            }
            Change::Refuse(Incompatibility { text, remedy }) => {
                return Err(OpenError::Halt {
                    reason: text,
                    remedy,
                });
            }
        }
        change::record(client, states.outbox, token, source).await?;
        let mark = mark_name(source.mark);
        info!(mark, "recorded how rows are marked");
        Ok(())
    }
}
