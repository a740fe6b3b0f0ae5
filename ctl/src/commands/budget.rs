//! `rugctl budget`: how many appliances may be unavailable for Rug to make another one unavailable by its own doing.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use common::appliance::Name;
use common::kind::KindName;
use common::selector::LabelSelector;
use proto::admin::v1;
use proto::admin::v1::{budget, set_budget_request};
use serde::Serialize;

use crate::commands::CommandContext;
use crate::complete;
use crate::error::Failure;
use crate::output::{TextTable, Tone, age, count};
use crate::text::one_line;

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum BudgetCommand {
    /// Limit how many appliances are made unavailable on purpose, in the place of a budget of the same name
    ///
    /// Moves, rebuilds and rollouts wait while as many are unavailable, for whatever reason. What finds no owner because its worker is
    /// lost waits for no budget.
    Set(SetArgs),
    /// Take a budget back
    Clear(ClearArgs),
    /// List budgets, how they stand and what waits for them
    List,
}

/// Arguments of `set`.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// Name of the budget
    #[arg(value_parser = Name::new)]
    name: Name,
    /// How many of a group may be unavailable: a number, or a part such as 10%
    #[arg(long, value_name = "N|N%", value_parser = parse_most)]
    max_unavailable: set_budget_request::MaxUnavailable,
    /// Which appliances are counted together
    #[arg(long, default_value = "all", value_parser = ["all", "tenant", "kind", "zone"])]
    per: String,
    /// Only those of this tenant
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    tenant: Option<Name>,
    /// Only those of this kind
    #[arg(long, value_parser = parse_kind)]
    kind: Option<KindName>,
    /// Only those whose worker is in this zone
    #[arg(long)]
    zone: Option<String>,
    /// Only those with these labels: key=value, key!=value, key in (a,b), key notin (a,b), key, !key
    #[arg(short = 'l', long)]
    selector: Option<LabelSelector>,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Arguments of `clear`.
#[derive(Args, Debug)]
pub(crate) struct ClearArgs {
    /// Name of the budget
    #[arg(value_parser = Name::new, add = complete::budgets())]
    name: Name,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

fn parse_kind(text: &str) -> Result<KindName, String> {
    KindName::find(text).ok_or_else(|| format!("there is no kind `{text}`"))
}

fn parse_most(text: &str) -> Result<set_budget_request::MaxUnavailable, String> {
    use set_budget_request::MaxUnavailable as Most;
    let number = |text: &str| text.parse::<u32>().map_err(|_| "must be a number, or a part such as 10%".to_owned());
    match text.strip_suffix('%') {
        None => number(text).map(Most::Count),
        Some(percent) => match number(percent)? {
            percent @ 1..=100 => Ok(Most::Percent(percent)),
            _ => Err("must be 1% to 100%".to_owned()),
        },
    }
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &BudgetCommand) -> Result<(), Failure> {
    match command {
        BudgetCommand::Set(args) => set(context, args).await,
        BudgetCommand::Clear(args) => {
            context.client.clear_budget(args.name.as_str(), &args.reason).await?;
            if context.ui.format.is_structured() {
                return context.ui.print_value(&serde_json::json!({ "name": args.name.as_str() }));
            }
            context.ui.print(&format!("there is no budget {} any more", args.name))
        }
        BudgetCommand::List => list(context).await,
    }
}

async fn set(context: &CommandContext, args: &SetArgs) -> Result<(), Failure> {
    let text = |name: &Option<Name>| name.as_ref().map(ToString::to_string).unwrap_or_default();
    let scope = v1::BudgetScope {
        tenant: text(&args.tenant),
        kind: args.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        zone: args.zone.clone().unwrap_or_default(),
        selector: args.selector.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let request = v1::SetBudgetRequest {
        name: args.name.to_string(),
        scope: Some(scope),
        per: args.per.clone(),
        max_unavailable: Some(args.max_unavailable),
        reason: args.reason.clone(),
    };
    let budget = context.client.set_budget(request).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&BudgetValue::from(&budget));
    }
    let down = match budget.down {
        0 => String::new(),
        down => format!(", {down} of them unavailable now"),
    };
    let covered = count(budget.covered, "appliance");
    context.ui.print(&format!("budget {} is in force: {} of {covered}{down}", budget.name, limit(&budget)))
}

async fn list(context: &CommandContext) -> Result<(), Failure> {
    let budgets = context.client.budgets().await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&budgets.iter().map(BudgetValue::from).collect::<Vec<_>>());
    }
    if budgets.is_empty() {
        return context.ui.print("there are no budgets");
    }
    context.ui.print_table(&table(&budgets, SystemTime::now()))
}

/// How many may be unavailable, in words.
pub(crate) fn limit(budget: &v1::Budget) -> String {
    let most = most(budget);
    if budget.per == "all" {
        format!("at most {most}")
    } else {
        format!("at most {most} per {}", one_line(&budget.per))
    }
}

fn most(budget: &v1::Budget) -> String {
    match budget.max_unavailable {
        Some(budget::MaxUnavailable::Count(count)) => count.to_string(),
        Some(budget::MaxUnavailable::Percent(percent)) => format!("{percent}%"),
        None => "?".to_owned(),
    }
}

/// What a budget is about, in a few words.
pub(crate) fn scope_text(budget: &v1::Budget) -> String {
    let v1::BudgetScope { tenant, kind, zone, selector } = budget.scope.clone().unwrap_or_default();
    let part = |name: &str, value: &str| (!value.is_empty()).then(|| format!("{name} {}", one_line(value)));
    let parts = [part("tenant", &tenant), part("kind", &kind), part("zone", &zone), part("labels", &selector)];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    if text.is_empty() { "everything".to_owned() } else { text }
}

fn table(budgets: &[v1::Budget], now: SystemTime) -> TextTable {
    let header = ["NAME", "COVERS", "PER", "MAX", "APPLIANCES", "DOWN", "SPENT", "WAITING", "AGE", "BY", "REASON"];
    let mut table = TextTable::new(&header).with_prose(&["REASON"]);
    for budget in budgets {
        let busy = |number: u64| (number.to_string(), if number > 0 { Tone::Busy } else { Tone::Plain });
        let plain = |text: String| (text, Tone::Plain);
        let spent = format!("{}/{}", budget.spent, budget.groups);
        table.row([
            plain(budget.name.clone()),
            plain(scope_text(budget)),
            plain(one_line(&budget.per)),
            plain(most(budget)),
            plain(budget.covered.to_string()),
            busy(budget.down),
            (spent, if budget.spent > 0 { Tone::Busy } else { Tone::Plain }),
            busy(budget.held),
            plain(age(budget.since.as_ref(), now)),
            plain(one_line(&budget.by)),
            plain(one_line(&budget.reason)),
        ]);
    }
    table
}

/// A budget as JSON or YAML.
#[derive(Debug, Serialize)]
struct BudgetValue {
    name: String,
    scope: String,
    per: String,
    max_unavailable: String,
    reason: String,
    by: String,
    covered: u64,
    down: u64,
    groups: u64,
    spent: u64,
    held: u64,
}

impl From<&v1::Budget> for BudgetValue {
    fn from(budget: &v1::Budget) -> Self {
        Self {
            name: budget.name.clone(),
            scope: scope_text(budget),
            per: budget.per.clone(),
            max_unavailable: most(budget),
            reason: budget.reason.clone(),
            by: budget.by.clone(),
            covered: budget.covered,
            down: budget.down,
            groups: budget.groups,
            spent: budget.spent,
            held: budget.held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_to_a_hundred_percent() {
        use set_budget_request::MaxUnavailable as Most;
        assert_eq!((parse_most("0"), parse_most("10%")), (Ok(Most::Count(0)), Ok(Most::Percent(10))));
        for wrong in ["0%", "101%", "-1", "half", "%", ""] {
            assert!(parse_most(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_shows_how_budgets_stand_and_what_waits_for_them() {
        let scope =
            v1::BudgetScope { tenant: "acme".into(), selector: "tier=web".into(), ..v1::BudgetScope::default() };
        let budget = v1::Budget {
            name: "web".into(),
            scope: Some(scope),
            per: "tenant".into(),
            max_unavailable: Some(budget::MaxUnavailable::Percent(10)),
            reason: "promised".into(),
            by: "me".into(),
            since: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            covered: 20,
            down: 2,
            groups: 1,
            spent: 1,
            held: 5,
        };
        assert_eq!(limit(&budget), "at most 10% per tenant");
        assert_eq!(
            table(&[budget], SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60)).render(false),
            "NAME  COVERS                        PER     MAX  APPLIANCES  DOWN  SPENT  WAITING  AGE  BY  REASON\n\
             web   tenant acme, labels tier=web  tenant  10%  20          2     1/1    5        1m   me  promised"
        );
    }
}
