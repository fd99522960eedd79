//! `skep events`.

use clap::Args;
use serde_json::Value;

use super::{filters, text};
use crate::client::{Client, encode};

/// Follow what happens in the cluster and on this node
#[derive(Debug, Args)]
pub struct EventsCommand {
    /// Only some, KEY=VALUE: type, event, scope, service, node, container, label, …; may be repeated
    #[arg(short, long)]
    filter: Vec<String>,
    /// Begin with events since then, seconds since 1970 or RFC 3339; the last 256 are kept
    #[arg(long)]
    since: Option<String>,
    /// End then, written the same way
    #[arg(long)]
    until: Option<String>,
    /// Print whole events as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(command: EventsCommand, client: &Client) -> anyhow::Result<()> {
    let mut path = format!("/events?filters={}", filters(&super::filter_pairs(&command.filter)?));
    for (key, moment) in [("since", &command.since), ("until", &command.until)] {
        if let Some(moment) = moment {
            path += &format!("&{key}={}", encode(moment));
        }
    }
    client.follow(&path, |event| if command.json { println!("{event}") } else { println!("{}", line(&event)) }).await
}

/// As Docker's client writes it: time, type, action, id, and the attributes in order.
fn line(event: &Value) -> String {
    let nanos = event["timeNano"].as_i64().unwrap_or_default();
    let at = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
    let attributes = event["Actor"]["Attributes"].as_object();
    let shown: Vec<String> =
        attributes.into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    let (kind, action, id) = (text(&event["Type"]), text(&event["Action"]), text(&event["Actor"]["ID"]));
    format!("{at:.9} {kind} {action} {id} ({})", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_time_the_action_and_the_attributes() {
        let event = serde_json::json!({
            "Type": "service", "Action": "update", "timeNano": 1_500_000_000_i64,
            "Actor": {"ID": "abc", "Attributes": {"name": "web", "replicas.new": "3"}},
        });
        assert_eq!(line(&event), "1970-01-01T00:00:01.500000000Z service update abc (name=web, replicas.new=3)");
    }
}
