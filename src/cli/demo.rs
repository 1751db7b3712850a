//! `pinhole demo`.

use std::io;

use super::Outcome;
use crate::demo::{self, DemoError};

pub(super) fn run() -> anyhow::Result<Outcome> {
    match demo::run(&mut io::stdout().lock()) {
        Ok(()) => Ok(Outcome::Good),
        Err(DemoError::Write(error)) => Err(error.into()),
        Err(error @ (DemoError::NotRoot | DemoError::Missing { .. })) => {
            super::print_error(format_args!("{error}"));
            Ok(Outcome::BadUsage)
        }
        Err(error) => Err(error.into()),
    }
}
