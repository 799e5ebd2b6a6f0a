//! `canopy token`

use crate::{
    cli::{TokenArgs, TokenCommand, TokenIssueArgs, TokenRegenerateArgs},
    failure::{Exit, Failure, io_reason},
    output::{Format, Screen},
    remote::Remote,
    view::tokens::{NewToken, Tokens},
};
use canopy_api::{
    endpoint::policy,
    scope::Scope,
    wire::tokens::{
        Binding, TokenIssueRequest, TokenListRequest, TokenRegenerateRequest, TokenReply,
        TokenRevokeRequest,
    },
};
use canopy_identity::Certificate;
use std::{fs, path::Path};

/// What has to be read before anything is asked: the certificate.
pub fn read(command: &TokenCommand) -> Result<Option<Binding>, Failure> {
    let with = match command {
        TokenCommand::Issue(TokenIssueArgs { with, .. })
        | TokenCommand::Regenerate(TokenRegenerateArgs { with, .. }) => with,
        TokenCommand::Revoke { .. } | TokenCommand::List { .. } | TokenCommand::Show { .. } => {
            return Ok(None);
        }
    };
    if let Some(file) = with.save.as_ref().filter(|file| file.exists()) {
        return Err(Failure::new(Exit::Failed, "there is such a file already")
            .at(file.display().to_string())
            .fix("choose another name: a token is never written over anything"));
    }
    let Some(file) = &with.certificate else {
        return Ok(with.san.clone().map(Binding::Name));
    };
    let place = file.display().to_string();
    let pem = fs::read(file).map_err(|error| Failure::io("read", file, &error))?;
    let certificate = Certificate::from_pem(&pem)
        .map_err(|error| Failure::new(Exit::Invalid, error.to_string()).at(place))?;
    Ok(Some(Binding::Fingerprint(certificate.fingerprint)))
}

/// Asks the policy service.
pub async fn run(
    command: &TokenCommand,
    binding: Option<Binding>,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Issue(args) => {
            let services = args.only_service.iter().copied().collect();
            let hosts = args.only_host.iter().cloned().collect();
            let scope = Scope {
                services: Some(services)
                    .filter(|set: &std::collections::BTreeSet<_>| !set.is_empty()),
                hosts: Some(hosts).filter(|set: &std::collections::BTreeSet<_>| !set.is_empty()),
            };
            let request = TokenIssueRequest {
                principal: args.person.clone(),
                role: args.role,
                scope: (scope != Scope::default()).then_some(scope),
                binding,
                expires_in: args.with.expires.map(|life| life.as_secs()),
            };
            let reply =
                remote.ask_centre_as::<policy::TokenIssue>(&request, args.with.repeat.id()).await?;
            hand_over(reply, &args.with, screen)
        }
        TokenCommand::Regenerate(args) => {
            let request = TokenRegenerateRequest {
                principal: args.person.clone(),
                binding,
                expires_in: args.with.expires.map(|life| life.as_secs()),
            };
            let reply = remote
                .ask_centre_as::<policy::TokenRegenerate>(&request, args.with.repeat.id())
                .await?;
            hand_over(reply, &args.with, screen)
        }
        TokenCommand::Revoke { person, absent, repeat, output } => {
            let request = TokenRevokeRequest { principal: person.clone() };
            let outcome = remote.ask_centre_as::<policy::TokenRevoke>(&request, repeat.id()).await;
            match absent.accept(outcome)? {
                Some(record) => screen.show(&Tokens(vec![record]), output.output)?,
                None => screen.note(&format!("{person} has no token")),
            }
            Ok(Exit::Done)
        }
        TokenCommand::List { output } => list(None, output.output, remote, screen).await,
        TokenCommand::Show { person, output } => {
            list(Some(person.clone()), output.output, remote, screen).await
        }
    }
}

async fn list(
    principal: Option<canopy_api::Principal>,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let request = TokenListRequest { principal, ..TokenListRequest::default() };
    let tokens = remote.read_centre::<policy::TokenList>(request).await?.tokens;
    screen.show(&Tokens(tokens), format)?;
    Ok(Exit::Done)
}

/// Puts the token where it was asked for. It is nowhere else.
fn hand_over(reply: TokenReply, args: &TokenArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let TokenReply { token, record } = reply;
    let Some(file) = &args.save else {
        screen.show(&NewToken { token: Some(token), record }, args.output.output)?;
        return Ok(Exit::Done);
    };
    if let Err(error) = save(file, &token.0) {
        return Err(Failure::new(
            Exit::Failed,
            format!("the token is lost: {}", io_reason(&error)),
        )
        .at(file.display().to_string())
        .fix(format!("canopy token regenerate {}", record.principal)));
    }
    screen.show(&NewToken { token: None, record }, args.output.output)?;
    Ok(Exit::Done)
}

fn save(file: &Path, token: &str) -> std::io::Result<()> {
    crate::files::write_new(file, format!("{token}\n").as_bytes(), crate::files::SECRET)
}
