//! docs/cli.md: every command with its arguments, made from what `--help` says.

use std::fmt::Write;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};

use super::Cli;

const HEAD: &str = "# Command line

<!-- Made by `OUTBOXD_BLESS=1 cargo test --lib is_fresh` from src/cli.rs and src/cli/. -->

`outboxd COMMAND --help` says the same.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: stderr says why |
| 2 | wrong arguments or configuration |
| 75 | try again later |

Every command but `demo` takes `--config FILE`, one file for one database. Default: the file that the variable
`OUTBOXD_CONFIG` names, else `/etc/outboxd/outboxd.toml`. Variables override its keys:
[configuration](configuration.md).

";

/// The commands that are called by people, in the order of the help.
fn commands() -> Vec<Command> {
    let mut root = Cli::command();
    root.build();
    let mut found = Vec::new();
    for command in root.get_subcommands().filter(|command| is_ours(command)) {
        match command.has_subcommands() {
            true => found.extend(
                command
                    .get_subcommands()
                    .filter(|below| is_ours(below))
                    .cloned(),
            ),
            false => found.push(command.clone()),
        }
    }
    found
}

fn is_ours(command: &Command) -> bool {
    command.get_name() != "help"
}

/// The command with those above it, as it is typed.
fn typed(command: &Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

fn reference() -> String {
    let mut page = HEAD.to_owned();
    let all = commands();
    page.push_str("| command | |\n|---|---|\n");
    for command in &all {
        let name = typed(command);
        let anchor = name.replace(' ', "-");
        let about = plain(command.get_about());
        line(
            &mut page,
            format_args!("| [`{name}`](#{anchor}) | {about} |"),
        );
    }
    for command in &all {
        section(&mut page, command);
    }
    page
}

fn section(page: &mut String, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    let about = plain(command.get_long_about().or(command.get_about()));
    let name = typed(command);
    line(
        page,
        format_args!("\n## {name}\n\n```\n{usage}\n```\n\n{about}"),
    );
    let is_own = |argument: &&Arg| argument.get_id() != "help" && argument.get_id() != "config";
    for (number, argument) in command.get_arguments().filter(is_own).enumerate() {
        if number == 0 {
            line(page, format_args!("\n| argument | |\n|---|---|"));
        }
        let (written, help) = (written(argument), help(argument));
        line(page, format_args!("| `{written}` | {help} |"));
    }
}

/// What an argument is for, in one line, with its default.
fn help(argument: &Arg) -> String {
    let help = plain(argument.get_long_help().or(argument.get_help()));
    let help = help.replace("\n\n", "<br>").replace('\n', " ");
    let values = argument.get_default_values().iter();
    let preset: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
    match preset.is_empty() || !argument.get_action().takes_values() {
        true => help,
        false => format!("{help}; default: {}", preset.join(", ")),
    }
}

/// An argument as it is typed.
fn written(argument: &Arg) -> String {
    let values: Vec<String> = match argument.get_value_names() {
        Some(names) if argument.get_action().takes_values() || argument.is_positional() => {
            names.iter().map(|name| name.to_string()).collect()
        }
        _ => Vec::new(),
    };
    let name = argument.get_long().map(|long| format!("--{long}"));
    name.into_iter().chain(values).collect::<Vec<_>>().join(" ")
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(page, "{text}").expect("a String takes every text");
}

#[test]
fn the_command_line_reference_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    if std::env::var_os("OUTBOXD_BLESS").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        text == reference(),
        "docs/cli.md is stale: OUTBOXD_BLESS=1 cargo test --lib is_fresh"
    );
}
