//! A change of which a part failed: each failure on standard error, and an exit code of its own.

use crate::{
    failure::{Exit, Failure},
    input::Input,
    output::Screen,
};
use canopy_api::wire::ApplyReply;

/// Tells what failed; how the process ends if nothing did is `otherwise`.
pub fn end(
    reply: &ApplyReply,
    input: Option<&Input>,
    screen: &mut Screen,
    otherwise: Exit,
) -> Exit {
    let mut exit = otherwise;
    for (chain, error) in reply.failed() {
        let mut failure = Failure::from(error.clone());
        if let Some(first) = failure.problems.first_mut() {
            // What the kernel refused begins with the chain.
            let name = format!("{}: ", chain.key());
            if !first.message.starts_with(&name) {
                first.message.insert_str(0, &name);
            }
        }
        screen.fail(&input.map_or(failure.clone(), |input| input.locate(failure)));
        exit = Exit::Partly;
    }
    exit
}
