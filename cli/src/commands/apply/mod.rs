//! `skep apply`: makes the cluster match files.
//!
//! Files become a stack (`inputs`), the cluster is looked at (`observe`), what differs is a plan (pure, in
//! `skep_api::manifest::plan`), which is carried out (`execute`), remembered (`revisions`) and waited for (`wait`).

mod execute;
pub mod export;
mod inputs;
mod interrupt;
mod logins;
mod observe;
pub mod revisions;
mod wait;

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{ArgAction, Args, ValueEnum};
use skep_api::manifest::Stack;
use skep_api::manifest::plan::{How, Plan, Prune, Step, Wanted, plan};
use skep_api::manifest::stack::DeclaredFile;

use crate::client::Client;
pub use execute::{TOGETHER, remove_when_unused};
use inputs::InputFlags;
use interrupt::Interrupt;
use logins::Logins;
use observe::{Seen, observe};
use revisions::Revision;
use wait::Show;

/// The label that says which file of the stack an object holds, whatever number it has.
const FILE_LABEL: &str = "io.skep.stack.file";

/// Make the cluster match files: Compose files, alone or several over each other
#[derive(Debug, Args)]
pub struct ApplyCommand {
    #[command(flatten)]
    inputs: InputFlags,
    #[command(flatten)]
    how: HowFlags,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// How a stack is brought to what is wanted
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct HowFlags {
    /// Remove everything of the stack that is not wanted, whoever made it
    #[arg(long)]
    prune: bool,
    /// Remove nothing, not even what an earlier apply made
    #[arg(long, conflicts_with = "prune")]
    no_prune: bool,
    /// Take back what was changed by hand
    #[arg(long)]
    force: bool,
    /// Give the credentials that are kept for the images' registries to the nodes that pull them
    #[arg(long)]
    with_registry_auth: bool,
    /// Wait until the services are what was asked for
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// The same as --wait=false
    #[arg(short, long)]
    detach: bool,
    /// How long to wait, like 90s or 5m; 0s for ever
    #[arg(long, default_value = "10m")]
    timeout: String,
    /// What is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// The plan as one line of JSON, then a line for each change of a service's progress.
    Json,
}

impl HowFlags {
    fn how(&self) -> How {
        let prune = match (self.prune, self.no_prune) {
            (true, _) => Prune::Labelled,
            (_, true) => Prune::Nothing,
            _ => Prune::Owned,
        };
        How { force: self.force, prune }
    }
}

/// What `skep stack diff` takes
#[derive(Debug, Args)]
pub struct DiffFlags {
    #[command(flatten)]
    inputs: InputFlags,
    /// What is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs `skep apply`.
pub async fn run(command: ApplyCommand, client: &Client) -> anyhow::Result<()> {
    let stack = command.inputs.read()?;
    if command.dry_run {
        return show_plan(client, &stack, command.how.how(), command.how.output).await;
    }
    let source = command.inputs.names().join(", ");
    apply(client, &Wanted::from(&stack), Some(&stack), &source, &command.how).await
}

/// Runs `skep stack diff`.
pub async fn diff(flags: DiffFlags, client: &Client) -> anyhow::Result<()> {
    let stack = flags.inputs.read()?;
    show_plan(client, &stack, How { force: false, prune: Prune::Owned }, flags.output).await
}

async fn show_plan(client: &Client, stack: &Stack, how: How, output: Output) -> anyhow::Result<()> {
    let wanted = Wanted::from(stack);
    let seen = observe(client, &wanted, &stack.parts.files).await?;
    let plan = plan(&wanted, &seen.observed, how);
    print(&plan, output);
    refuse(&plan)
}

fn print(plan: &Plan, output: Output) {
    match output {
        Output::Text => print!("{plan}"),
        Output::Json => println!("{}", plan.json()),
    }
}

fn refuse(plan: &Plan) -> anyhow::Result<()> {
    ensure!(plan.refusals.is_empty(), "this cannot be done; nothing was changed\n{}", plan.refusals.join("\n"));
    Ok(())
}

/// Brings the cluster to what is wanted, remembers it, and waits. `stack` are the files, if it comes from such.
///
/// # Errors
/// What cannot be done, what the cluster says, and services that do not become what was asked for.
pub async fn apply(
    client: &Client,
    wanted: &Wanted,
    stack: Option<&Stack>,
    source: &str,
    flags: &HowFlags,
) -> anyhow::Result<()> {
    let contents = stack.map_or(&[][..], |stack| &stack.parts.files);
    let logins = Logins::of(stack, flags.with_registry_auth);
    let timeout: jiff::SignedDuration = flags
        .timeout
        .parse()
        .with_context(|| format!("--timeout {}: write a duration like 90s or 5m", flags.timeout))?;
    let timeout = Duration::try_from(timeout).context("--timeout must not be negative")?;
    let Seen { observed, revisions, mut ids } = observe(client, wanted, contents).await?;
    let plan = plan(wanted, &observed, flags.how());
    refuse(&plan)?;
    let mut interrupt = Interrupt::new()?;
    print(&plan, flags.output);
    let touched = execute::execute(client, &plan, contents, &logins, &mut ids, &mut interrupt).await?;
    let resolved = wanted.resolved(&plan.names);
    if !plan.is_empty() || observed.last.as_ref() != Some(&resolved) {
        let revision = Revision {
            number: revisions.next_number(),
            at: jiff::Timestamp::now().to_string(),
            source: source.to_owned(),
            summary: plan.summary(),
            wanted: resolved,
        };
        let keep = async {
            if revisions::keep(client, &revisions, &revision).await? {
                collect(client, wanted, contents, flags.how()).await?;
            }
            Ok(())
        };
        let said = "stopped while keeping the revision; everything was handed to the cluster, apply again to keep it";
        interrupt.or(keep, || said.to_owned()).await?;
    }
    if flags.wait && !flags.detach {
        let show = if flags.output == Output::Json { Show::Json } else { Show::Text };
        wait::wait(client, &touched, timeout, show, &mut interrupt).await?;
    }
    Ok(())
}

/// Removes secrets and configs that only a forgotten revision needed.
async fn collect(client: &Client, wanted: &Wanted, contents: &[DeclaredFile], how: How) -> anyhow::Result<()> {
    let Seen { observed, mut ids, .. } = observe(client, wanted, contents).await?;
    let mut rest = plan(wanted, &observed, how);
    rest.steps.retain(|step| matches!(step, Step::RemoveFile { .. }));
    let logins = Logins::default();
    execute::execute(client, &rest, contents, &logins, &mut ids, &mut Interrupt::new()?).await.map(drop)
}
