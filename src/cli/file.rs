//! Which configuration a command reads: the argument's, the variable's, the usual one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

const VARIABLE: &str = "OUTBOXD_CONFIG";
pub(super) const USUAL: &str = "/etc/outboxd/outboxd.toml";

/// No configuration was found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error(
        "there is no configuration: `--config FILE` is not given, the variable {VARIABLE} is not set, and `{USUAL}` \
         does not exist; give one of the three"
    )]
    Nowhere,
    #[error(
        "`{}` does not exist, which the variable {VARIABLE} names; correct it, or give `--config FILE`", .0.display()
    )]
    NotThere(PathBuf),
}

/// The file to read; one that an argument names need not exist.
pub(super) fn find(argument: Option<&Path>) -> Result<PathBuf, FileError> {
    choose(argument, std::env::var_os(VARIABLE), Path::exists)
}

fn choose(
    argument: Option<&Path>,
    variable: Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Result<PathBuf, FileError> {
    if let Some(file) = argument {
        return Ok(file.to_owned());
    }
    if let Some(file) = variable.filter(|name| !name.is_empty()).map(PathBuf::from) {
        return match exists(&file) {
            true => Ok(file),
            false => Err(FileError::NotThere(file)),
        };
    }
    match exists(Path::new(USUAL)) {
        true => Ok(USUAL.into()),
        false => Err(FileError::Nowhere),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_goes_before_the_variable_and_that_before_the_usual_file() {
        let variable = || Some(OsString::from("/v"));
        let all = |_: &Path| true;
        let none = |_: &Path| false;
        assert_eq!(
            choose(Some(Path::new("/a")), variable(), none),
            Ok("/a".into())
        );
        assert_eq!(choose(None, variable(), all), Ok("/v".into()));
        assert_eq!(choose(None, Some(OsString::new()), all), Ok(USUAL.into()));
        assert_eq!(
            choose(None, variable(), none),
            Err(FileError::NotThere("/v".into()))
        );
        let nowhere = choose(None, None, none).unwrap_err().to_string();
        for place in ["--config", VARIABLE, USUAL] {
            assert!(nowhere.contains(place), "{nowhere}");
        }
    }
}
