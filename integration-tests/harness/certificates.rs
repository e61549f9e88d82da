//! Certificates made for one test: an authority, what it issues, and files of them.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use super::workspace;

const DAY: i64 = 24 * 60 * 60;

/// What a certificate is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    EcdsaSha256,
    EcdsaSha384,
    RsaSha256,
    RsaSha512,
    Ed25519,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: X509,
    pub key: PKey<Private>,
    signature: Signature,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub common_name: &'a str,
    /// Host names and addresses.
    pub names: &'a [&'a str],
    pub is_expired: bool,
}

impl<'a> Subject<'a> {
    /// A server at these host names and addresses, or a client.
    pub fn named(common_name: &'a str, names: &'a [&'a str]) -> Self {
        Self {
            common_name,
            names,
            is_expired: false,
        }
    }
}

/// The files of an identity.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Identity {
    /// An authority that vouches for itself.
    pub fn authority(name: &str, signature: Signature) -> Self {
        let key = signature.key();
        let subject = Subject::named(name, &[]);
        let certificate = sign(&subject, &key, None, (&key, signature));
        Self {
            certificate,
            key,
            signature,
        }
    }

    /// A certificate that it issues.
    pub fn issue(&self, subject: &Subject<'_>) -> Self {
        let key = self.signature.key();
        let certificate = sign(
            subject,
            &key,
            Some(&self.certificate),
            (&self.key, self.signature),
        );
        Self {
            certificate,
            key,
            signature: self.signature,
        }
    }

    /// A server's certificate that vouches for itself, as `openssl req -x509` makes it.
    pub fn self_signed(subject: &Subject<'_>, signature: Signature) -> Self {
        let key = signature.key();
        let certificate = sign(subject, &key, None, (&key, signature));
        Self {
            certificate,
            key,
            signature,
        }
    }

    /// Writes certificate and key into a folder, over what stood there.
    pub fn write(&self, folder: &Path, name: &str) -> Files {
        let files = Files {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, self.certificate_pem()).expect("write a certificate");
        write_key(&files.key, self.key_pem().as_bytes());
        files
    }

    pub fn certificate_pem(&self) -> String {
        let pem = self.certificate.to_pem().expect("a certificate as PEM");
        String::from_utf8(pem).expect("PEM is ASCII")
    }

    pub fn key_pem(&self) -> String {
        let pem = self.key.private_key_to_pem_pkcs8().expect("a key as PEM");
        String::from_utf8(pem).expect("PEM is ASCII")
    }

    /// Writes the key so that it needs a passphrase.
    pub fn write_encrypted_key(&self, path: &Path, passphrase: &str) {
        let cipher = Cipher::aes_256_cbc();
        let key = self
            .key
            .private_key_to_pem_pkcs8_passphrase(cipher, passphrase.as_bytes());
        write_key(path, &key.expect("an encrypted key as PEM"));
    }
}

impl Signature {
    fn key(self) -> PKey<Private> {
        let curve = |nid| {
            let group = EcGroup::from_curve_name(nid)?;
            PKey::from_ec_key(EcKey::generate(&group)?)
        };
        let key = match self {
            Self::EcdsaSha256 => curve(Nid::X9_62_PRIME256V1),
            Self::EcdsaSha384 => curve(Nid::SECP384R1),
            Self::RsaSha256 | Self::RsaSha512 => Rsa::generate(2048).and_then(PKey::from_rsa),
            Self::Ed25519 => PKey::generate_ed25519(),
        };
        key.expect("make a key")
    }

    fn digest(self) -> MessageDigest {
        match self {
            Self::EcdsaSha256 | Self::RsaSha256 => MessageDigest::sha256(),
            Self::EcdsaSha384 => MessageDigest::sha384(),
            Self::RsaSha512 => MessageDigest::sha512(),
            Self::Ed25519 => MessageDigest::null(),
        }
    }
}

/// Without an issuer the certificate is an authority's own.
fn sign(
    subject: &Subject<'_>,
    key: &PKey<Private>,
    issuer: Option<&X509>,
    (issuer_key, signature): (&PKey<Private>, Signature),
) -> X509 {
    let build = || {
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_text("CN", subject.common_name)?;
        let name = name.build();
        let mut builder = X509Builder::new()?;
        builder.set_version(2)?;
        let serial = BigNum::from_u32(fastrand::u32(1..))?.to_asn1_integer()?;
        builder.set_serial_number(&serial)?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(issuer.map_or(&*name, |issuer| issuer.subject_name()))?;
        builder.set_pubkey(key)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("a clock behind 1970").as_secs() as i64;
        let last = if subject.is_expired {
            now - DAY
        } else {
            now + DAY
        };
        let (first, last) = (
            Asn1Time::from_unix(now - 2 * DAY)?,
            Asn1Time::from_unix(last)?,
        );
        builder.set_not_before(&first)?;
        builder.set_not_after(&last)?;
        if issuer.is_none() {
            builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        }
        if !subject.names.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for name in subject.names {
                match name.parse::<std::net::IpAddr>() {
                    Ok(_) => names.ip(name),
                    Err(_) => names.dns(name),
                };
            }
            let names = names.build(&builder.x509v3_context(issuer.map(|one| &**one), None))?;
            builder.append_extension(names)?;
        }
        builder.sign(issuer_key, signature.digest())?;
        Ok::<_, openssl::error::ErrorStack>(builder.build())
    };
    build().expect("make a certificate")
}

/// PostgreSQL refuses a key that others can read, and runs as another user than we where we are root.
fn write_key(path: &Path, pem: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, pem).expect("write a key");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("guard a key");
    workspace::hand_over(path);
}
