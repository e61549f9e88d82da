//! What a URL says about TLS, in libpq's words.
//!
//! Files are named here and read at each connect, so that a renewed certificate is picked up without a restart.

use std::fmt;
use std::path::PathBuf;

use super::fault::UrlFault;

/// What is written where another mode is refused.
const MODES: &str = "disable, allow, prefer, require, verify-ca or verify-full";

/// Whether a connection is encrypted, and how much the server must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    Disable,
    /// Plain text, TLS where the server does not admit us without.
    Allow,
    /// TLS where the server offers it, plain text where it does not.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Who may have issued the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// The authorities that the operating system trusts.
    System,
    File(PathBuf),
}

/// What we show where the server asks who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Whether the password's proof must be bound to the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// What the URL says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    pub mode: SslMode,
    /// Where they are named, the server's certificate is verified in every mode that encrypts.
    pub roots: Option<RootCertificates>,
    pub client: Option<ClientCertificate>,
    pub channel_binding: ChannelBinding,
}

/// The parameters of a URL that concern TLS, while it is being read.
#[derive(Default)]
pub(super) struct TlsParameters {
    mode: Option<SslMode>,
    roots: Option<RootCertificates>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    channel_binding: Option<ChannelBinding>,
}

impl SslMode {
    const ALL: [Self; 6] = [
        Self::Disable,
        Self::Allow,
        Self::Prefer,
        Self::Require,
        Self::VerifyCa,
        Self::VerifyFull,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TlsParameters {
    /// Takes a parameter; `false` where it does not concern TLS.
    pub(super) fn read(&mut self, name: &str, value: &str) -> Result<bool, UrlFault> {
        let path = || Some(PathBuf::from(value)).filter(|_| !value.is_empty());
        match name {
            "sslmode" => {
                let mode = SslMode::ALL.into_iter().find(|mode| mode.name() == value);
                self.mode = Some(mode.ok_or_else(|| UrlFault::value("sslmode", MODES))?);
            }
            "sslrootcert" if value == "system" => self.roots = Some(RootCertificates::System),
            "sslrootcert" => self.roots = path().map(RootCertificates::File),
            "sslcert" => self.certificate = path(),
            "sslkey" => self.key = path(),
            "channel_binding" => {
                self.channel_binding = Some(match value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => {
                        let allowed = "disable, prefer or require";
                        return Err(UrlFault::value("channel_binding", allowed));
                    }
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Refuses what does not go together, and fills in libpq's defaults.
    pub(super) fn finish(self) -> Result<TlsOptions, UrlFault> {
        let is_system = self.roots == Some(RootCertificates::System);
        let usual = if is_system {
            SslMode::VerifyFull
        } else {
            SslMode::Prefer
        };
        let mode = self.mode.unwrap_or(usual);
        if is_system && mode < SslMode::VerifyFull {
            return Err(UrlFault::new(
                "has `sslrootcert=system`, which trusts every public authority, beside a weaker `sslmode`",
                "write sslmode=verify-full, or name your authority's file in sslrootcert",
            ));
        }
        if mode >= SslMode::VerifyCa && self.roots.is_none() {
            return Err(UrlFault::new(
                format!("has `sslmode={mode}` without `sslrootcert`"),
                "write sslrootcert= with a file that holds your authority's certificate, or `system`",
            ));
        }
        let client = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(UrlFault::new(
                    "has one of `sslcert` and `sslkey` without the other",
                    "name the certificate's file in sslcert and its key's in sslkey",
                ));
            }
        };
        Ok(TlsOptions {
            mode,
            roots: self.roots,
            client,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<TlsOptions, UrlFault> {
        let mut tls = TlsParameters::default();
        for (name, value) in parameters {
            assert!(tls.read(name, value)?);
        }
        tls.finish()
    }

    #[test]
    fn without_a_word_tls_is_preferred_and_the_proof_is_bound_where_it_can_be() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.mode, SslMode::Prefer);
        assert_eq!(options.channel_binding, ChannelBinding::Prefer);
        assert_eq!((options.roots, options.client), (None, None));
    }

    #[test]
    fn every_mode_of_libpq_is_known_and_no_other() {
        for mode in SslMode::ALL {
            let options = parse(&[("sslmode", mode.name()), ("sslrootcert", "/ca.pem")]);
            assert_eq!(options.unwrap().mode, mode);
        }
        let error = parse(&[("sslmode", "verify_full")]).unwrap_err();
        assert!(error.problem.contains("`sslmode`"), "{error}");
        for mode in SslMode::ALL {
            assert!(error.remedy.contains(mode.name()), "{error}");
        }
    }

    #[test]
    fn verifying_needs_an_authority_and_the_systems_own_needs_the_name() {
        for mode in ["verify-ca", "verify-full"] {
            assert!(parse(&[("sslmode", mode)]).is_err());
        }
        let system = ("sslrootcert", "system");
        assert_eq!(parse(&[system]).unwrap().mode, SslMode::VerifyFull);
        for mode in ["prefer", "require", "verify-ca"] {
            assert!(parse(&[("sslmode", mode), system]).is_err());
        }
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        assert!(parse(&[("sslcert", "/c.pem")]).is_err());
        assert!(parse(&[("sslkey", "/k.pem")]).is_err());
        let options = parse(&[("sslcert", "/c.pem"), ("sslkey", "/k.pem")]).unwrap();
        assert_eq!(options.client.unwrap().key, PathBuf::from("/k.pem"));
    }
}
