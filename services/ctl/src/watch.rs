//! `get -w`: asks again and again, and shows what has changed.

use crate::{
    failure::{Exit, Failure},
    output::{Answer, Format, Screen},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Time between two questions.
const PAUSE: Duration = Duration::from_secs(1);
/// A column that changes with every answer.
const CLOCK: &str = "LAST-SEEN";

/// What was shown of a thing last.
#[derive(Debug, PartialEq)]
struct Shown {
    row: Vec<String>,
    object: Value,
}

/// Shows everything once, then what is new, changed or gone, until it is interrupted. A question that
/// fails is told, and put again.
///
/// # Errors
/// When the first question fails, or nothing can be written.
pub async fn watch<A: Answer>(
    format: Format,
    screen: &mut Screen,
    mut ask: impl AsyncFnMut(&mut Screen) -> Result<A, Failure>,
) -> Result<Exit, Failure> {
    let mut before: Option<BTreeMap<String, Shown>> = None;
    let mut last_failure = None;
    loop {
        match ask(screen).await {
            Ok(answer) => {
                last_failure = None;
                let now = things(&answer)?;
                show(before.as_ref(), &now, &answer, format, screen)?;
                before = Some(now);
            }
            Err(failure) if before.is_none() => return Err(failure),
            Err(failure) => {
                // Said once, not with every question.
                if last_failure.as_ref() != Some(&failure) {
                    screen.fail(&failure);
                }
                last_failure = Some(failure);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Each thing by its name.
fn things<A: Answer>(answer: &A) -> Result<BTreeMap<String, Shown>, Failure> {
    let rows = answer.table().map(|table| table.cells(CLOCK)).unwrap_or_default();
    let value: Value = serde_json::from_str(&crate::output::json(answer)?).unwrap_or_default();
    let objects = value.as_array().cloned().unwrap_or_default();
    let things = answer.names().into_iter().enumerate().map(|(i, name)| {
        let row = rows.get(i).cloned().unwrap_or_default();
        let object = objects.get(i).cloned().unwrap_or_default();
        (name, Shown { row, object })
    });
    Ok(things.collect())
}

fn show<A: Answer>(
    before: Option<&BTreeMap<String, Shown>>,
    now: &BTreeMap<String, Shown>,
    answer: &A,
    format: Format,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let gone = before.into_iter().flatten().filter(|(name, _)| !now.contains_key(*name));
    let change = |name: &str| match before.and_then(|before| before.get(name)) {
        None => Some("added"),
        Some(old) if old.row != now.get(name).map(|new| new.row.clone()).unwrap_or_default() => {
            Some("modified")
        }
        Some(_) => None,
    };
    match format {
        Format::Table | Format::Wide => {
            let changed: Vec<bool> =
                answer.names().iter().map(|name| change(name).is_some()).collect();
            if let Some(table) = answer.table() {
                let some = table.only(&changed);
                let text = screen.table(&some, format);
                // The titles stand above the first answer only.
                let skip = usize::from(before.is_some());
                for line in text.lines().skip(skip) {
                    screen.print(&format!("{line}\n"))?;
                }
            }
            for (name, _) in gone {
                screen.line(&format!("{name} is gone"))?;
            }
        }
        Format::Name => {
            for (name, _) in now.iter().filter(|(name, _)| change(name).is_some()) {
                screen.line(name)?;
            }
        }
        Format::Json | Format::Yaml => {
            let events = now
                .iter()
                .filter_map(|(name, shown)| Some((change(name)?, name, shown)))
                .chain(gone.map(|(name, shown)| ("deleted", name, shown)));
            for (what, name, shown) in events {
                let event = json!({ "type": what, "name": name, "object": shown.object });
                if format == Format::Json {
                    screen.print_json_line(&event.to_string())?;
                } else {
                    screen.print(&format!("---\n{}", crate::output::yaml(&event)?))?;
                }
            }
        }
    }
    Ok(())
}
