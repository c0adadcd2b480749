//! How the examples end.

use std::error::Error;
use std::process::ExitCode;

/// The exit status of a program: 0 if all went well, 1 if not, and 2 after an error, whose text is
/// printed on standard error.
pub fn exit_status(result: Result<bool, Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem:#}");
            ExitCode::from(2)
        }
    }
}
