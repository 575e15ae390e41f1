//! `virtbus completion`: what a shell needs to complete this command line.

use crate::{
    args::Cli,
    exit::{Exit, Failure},
    output::Output,
};
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "bash: source <(virtbus completion bash)")]
pub(crate) struct Args {
    shell: Shell,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "virtbus", &mut script);
    let script = String::from_utf8_lossy(&script);
    if output.json {
        output.value(&serde_json::json!({"shell": args.shell.to_string(), "script": script}))?;
    } else {
        output.text(script.trim_end())?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "virtbus", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("submit") && script.contains("doctor"),
                "{shell}"
            );
        }
    }
}
