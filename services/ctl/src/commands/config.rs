//! `canopy config`

use crate::{
    cli::{ConfigCommand, ConnectionArgs},
    context::{ContextFile, Settings, default_path},
    failure::{Exit, Failure},
    files,
    output::{Answer, Screen, Table, text},
    view::Fields,
};
use canopy_api::document::{self, Format};
use serde::Serialize;

/// Shows or changes the context file.
pub fn run(
    command: &ConfigCommand,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::View { output } => {
            screen.show(&InForce::of(&Settings::gather(connection)?), output.output)?;
        }
        ConfigCommand::GetContexts { output } => {
            let path = connection.context_file.clone().unwrap_or_else(default_path);
            let file = ContextFile::read(&path, connection.context_file.is_some())?;
            screen.show(&Contexts(file), output.output)?;
        }
        ConfigCommand::Use { context } => {
            let path = connection.context_file.clone().unwrap_or_else(default_path);
            ContextFile::read(&path, true)?.find(context, &path.display().to_string())?;
            let text = files::read_text(&path, 1 << 20)?;
            let format = Format::of(&path).unwrap_or(Format::Yaml);
            let text = set_current(&text, format, context)?;
            files::write_atomic(&path, text.as_bytes(), files::SECRET)?;
            screen.note(&format!("current context is now \"{context}\""));
        }
    }
    Ok(Exit::Done)
}

/// The file's text with another `current`. In YAML only that line is touched, so that comments
/// stay.
fn set_current(text: &str, format: Format, context: &str) -> Result<String, Failure> {
    let quoted = serde_json::Value::from(context).to_string();
    if format == Format::Json {
        let mut value = document::parse(text, format)
            .map_err(|problems| Failure { exit: Exit::Invalid, problems: problems.0 })?;
        if let Some(object) = value.as_object_mut() {
            object.insert("current".to_owned(), context.into());
        }
        return crate::output::json(&value);
    }
    let line = format!("current: {quoted}");
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter_mut().find(|line| line.starts_with("current:")) {
        Some(old) => *old = &line,
        None => lines.insert(0, &line),
    }
    Ok(lines.join("\n") + "\n")
}

/// What a command would use now.
#[derive(Debug, Serialize)]
struct InForce {
    file: String,
    context: Option<String>,
    url: Option<String>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    principal: Option<String>,
    host: Option<String>,
}

impl InForce {
    fn of(settings: &Settings) -> Self {
        let path =
            |path: &Option<std::path::PathBuf>| path.as_ref().map(|p| p.display().to_string());
        Self {
            file: settings.file.display().to_string(),
            context: settings.name.clone(),
            url: settings.url.clone(),
            ca: path(&settings.ca),
            cert: path(&settings.cert),
            key: path(&settings.key),
            principal: settings.principal.as_ref().map(ToString::to_string),
            host: settings.host.as_ref().map(ToString::to_string),
        }
    }
}

impl Answer for InForce {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, _colour: bool) -> String {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        let mut fields = Fields::default();
        fields
            .add("file", &self.file)
            .add("context", or_none(&self.context))
            .add("url", or_none(&self.url))
            .add("ca", or_none(&self.ca))
            .add("cert", or_none(&self.cert))
            .add("key", or_none(&self.key))
            .add("principal", or_none(&self.principal))
            .add("host", or_none(&self.host));
        fields.render(0)
    }

    fn names(&self) -> Vec<String> {
        self.context.iter().cloned().collect()
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Contexts(ContextFile);

impl Answer for Contexts {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("CURRENT"),
            text("NAME"),
            text("URL"),
            text("PRINCIPAL"),
            text("HOST"),
            text("CERT").wide(),
        ]);
        for context in &self.0.contexts {
            let current = self.0.current.as_ref() == Some(&context.name);
            table.row([
                if current { "*" } else { " " }.into(),
                context.name.clone().into(),
                context.url.clone().into(),
                (&context.principal).into(),
                context.host.as_ref().map(ToString::to_string).unwrap_or_default().into(),
                (&context.cert.display()).into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.contexts.iter().map(|context| context.name.clone()).collect()
    }

    fn nothing(&self) -> String {
        "no contexts".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choosing_a_context_touches_one_line() {
        let yaml = "# mine\ncurrent: dev\ncontexts: [] # none\n";
        assert_eq!(
            set_current(yaml, Format::Yaml, "prod").unwrap(),
            "# mine\ncurrent: \"prod\"\ncontexts: [] # none\n"
        );
        assert_eq!(
            set_current("contexts: []\n", Format::Yaml, "p").unwrap(),
            "current: \"p\"\ncontexts: []\n"
        );
        let json = set_current("{\"contexts\": []}", Format::Json, "p").unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["current"], "p");
    }
}
