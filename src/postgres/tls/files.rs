//! Certificates and keys, read from their files anew for each connection.
//!
//! Never asks for a passphrase, and never says what a file holds.

use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::{ClientCertificate, RootCertificates, TlsFault, TlsOptions};

/// What a handshake needs besides the server's name.
///
/// Blocks while it reads files.
pub(super) fn context(options: &TlsOptions) -> Result<SslContext, TlsFault> {
    let mut context = bare_context().map_err(library)?;
    match &options.roots {
        None => context.set_verify(SslVerifyMode::NONE),
        Some(roots) => {
            context.set_verify(SslVerifyMode::PEER);
            match roots {
                RootCertificates::File(path) => trust_file(&mut context, path)?,
                RootCertificates::System => trust_system(&mut context)?,
            }
        }
    }
    if let Some(client) = &options.client {
        show(&mut context, client)?;
    }
    Ok(context.build())
}

fn bare_context() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    // PostgreSQL's messages say themselves where they end: an end of the stream is no more than that.
    context.set_options(SslOptions::NO_COMPRESSION | SslOptions::IGNORE_UNEXPECTED_EOF);
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // A write that is taken up again may find its bytes at another place.
    context.set_mode(
        SslMode::AUTO_RETRY | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER,
    );
    // The walsender writes a record for each change; else each would cost two reads.
    context.set_read_ahead(true);
    Ok(context)
}

fn trust_file(context: &mut SslContextBuilder, path: &Path) -> Result<(), TlsFault> {
    let certificates = certificates("sslrootcert", path)?;
    let store = || {
        let mut store = X509StoreBuilder::new()?;
        for certificate in certificates {
            store.add_cert(certificate)?;
        }
        Ok(store.build())
    };
    context.set_cert_store(store().map_err(library)?);
    Ok(())
}

fn trust_system(context: &mut SslContextBuilder) -> Result<(), TlsFault> {
    let found = openssl_probe::probe();
    let (file, folder) = (found.cert_file.as_deref(), found.cert_dir.first());
    if file.is_none() && folder.is_none() {
        let why = "holds no certificates; set SSL_CERT_FILE, or name a file in `sslrootcert`";
        return Err(fault("sslrootcert", Path::new("system"), why));
    }
    let loaded = context.load_verify_locations(file, folder.map(|folder| folder.as_path()));
    loaded.map_err(library)
}

fn show(context: &mut SslContextBuilder, client: &ClientCertificate) -> Result<(), TlsFault> {
    let mut chain = certificates("sslcert", &client.certificate)?.into_iter();
    let key = key(&client.key)?;
    if let Some(own) = chain.next() {
        context.set_certificate(&own).map_err(library)?;
    }
    for issuer in chain {
        context.add_extra_chain_cert(issuer).map_err(library)?;
    }
    let is_pair = context.set_private_key(&key);
    is_pair.map_err(|_| {
        let why = "is not the key of the certificate in `sslcert`";
        fault("sslkey", &client.key, why)
    })
}

/// All certificates of a PEM file, one at least.
fn certificates(parameter: &'static str, path: &Path) -> Result<Vec<X509>, TlsFault> {
    let pem = read(parameter, path)?;
    match X509::stack_from_pem(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(fault(parameter, path, "holds no certificate in PEM format")),
    }
}

fn key(path: &Path) -> Result<PKey<Private>, TlsFault> {
    let pem = read("sslkey", path)?;
    let mut is_encrypted = false;
    // Without the callback OpenSSL would ask on the terminal.
    let key = PKey::private_key_from_pem_callback(&pem, |_| {
        is_encrypted = true;
        Err(ErrorStack::get())
    });
    key.map_err(|_| {
        let why = if is_encrypted {
            "is encrypted; write the key without a passphrase and guard the file by its mode"
        } else {
            "holds no private key in PEM format"
        };
        fault("sslkey", path, why)
    })
}

fn read(parameter: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
    std::fs::read(path).map_err(|error| fault(parameter, path, &format!("can't be read: {error}")))
}

fn fault(parameter: &'static str, path: &Path, why: &str) -> TlsFault {
    TlsFault::File {
        parameter,
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn library(errors: ErrorStack) -> TlsFault {
    TlsFault::Library(errors.to_string())
}
