//! `outboxd migrate`: does what the database lacks, and says so step by step.

use std::io::Write;

use tokio_postgres::Client;

use crate::config::Config;
use crate::state::schema::{self, MigrateError, MigrateOptions, Part, Step, StepState};
use crate::text::paste;

/// Does what is needed and says on `out` what it does or finds there.
///
/// Errors: the first step that fails; what was done before it stands, and the next run goes on from there.
pub async fn run(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
    out: &mut (dyn Write + Send),
) -> Result<(), MigrateError> {
    schema::refuse_surroundings(client).await?;
    schema::lock(client).await?;
    let done = run_locked(client, config, options, out).await;
    schema::unlock(client).await?;
    done
}

async fn run_locked(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
    out: &mut (dyn Write + Send),
) -> Result<(), MigrateError> {
    let (mut is_ours, mut ungranted) = (false, Vec::new());
    let steps = schema::plan(client, config, options).await?;
    schema::refuse_server(client, config, &steps).await?;
    schema::refuse_obstacles(client, config, options, &steps).await?;
    for step in steps {
        // The state stands by then: a person says in it whose a slot is that was there before.
        if step.part != Part::State && !is_ours {
            schema::refuse_others(client, config).await?;
            is_ours = true;
        }
        match step.state {
            StepState::AlreadyThere => writeln!(out, "already there  {}", step.description)?,
            StepState::Skipped(why) => {
                let why = paste::complete(why);
                writeln!(out, "skipped        {}: {why}", step.description)?;
            }
            StepState::Needed => {
                write!(out, "creating       {} … ", step.description)?;
                out.flush()?;
                let outcome = match schema::apply(client, &step).await {
                    Ok(()) if !is_granted(client, config, options, &step).await? => {
                        ungranted.push(step);
                        "not granted"
                    }
                    Ok(()) => "done",
                    // Only roles with REPLICATION may; the relay's own has it, or `check` asks for it.
                    Err(MigrateError::Step { source, .. })
                        if step.part == Part::Slot && schema::is_denied(&source) =>
                    {
                        "this role may not; the relay creates it at its first start"
                    }
                    Err(error) => return Err(error),
                };
                writeln!(out, "{outcome}")?;
            }
        }
    }
    if !ungranted.is_empty() {
        let role = client.query_one("SELECT current_user::text", &[]).await;
        let role = role.map_err(|error| MigrateError::Look(error.into()))?;
        return Err(MigrateError::NotGranted {
            role: role.get(0),
            steps: ungranted,
        });
    }
    if options.adopt {
        let done = schema::adopt(client, config, options).await?;
        writeln!(out, "adopted        {done}")?;
    }
    Ok(())
}

/// Whether a right is there that was just granted: without the option to grant it PostgreSQL warns and goes on.
async fn is_granted(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
    step: &Step,
) -> Result<bool, MigrateError> {
    if step.part != Part::Grant {
        return Ok(true);
    }
    let steps = schema::plan(client, config, options).await?;
    let is_left = |one: &Step| {
        one.part == step.part
            && one.description == step.description
            && one.state == StepState::Needed
    };
    Ok(!steps.iter().any(is_left))
}
