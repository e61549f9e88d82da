//! Each mode, each way to authenticate, each fault of a certificate; always on both kinds of connection.

use outboxd::postgres::Verified;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_does_what_libpq_says_on_the_oldest_version() {
    every_mode_does_what_libpq_says(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_does_what_libpq_says_on_the_newest_version() {
    every_mode_does_what_libpq_says(18).await;
}

async fn every_mode_does_what_libpq_says(major: u32) {
    let server = Secured::start(major).await;
    let require = "sslmode=require";
    for (role, parameters, verified) in [
        ("bound", "", Some(Verified::Nothing)),
        ("bound", "sslmode=allow", Some(Verified::Nothing)),
        ("bound", require, Some(Verified::Nothing)),
        ("bound", &server.verified("require"), Some(Verified::Issuer)),
        (
            "bound",
            &server.verified("verify-ca"),
            Some(Verified::Issuer),
        ),
        (
            "bound",
            &server.verified("verify-full"),
            Some(Verified::IssuerAndName),
        ),
        ("plain", "", None),
        ("plain", "sslmode=allow", None),
        ("plain", "sslmode=disable", None),
    ] {
        let security = server.connect(role, parameters).await;
        let security = security.unwrap_or_else(|error| panic!("{role} {parameters}: {error}"));
        let found = match &security {
            Security::Tls {
                version, verified, ..
            } => {
                assert_eq!(*version, "TLSv1.3");
                Some(*verified)
            }
            _ => None,
        };
        assert_eq!(found, verified, "{role} {parameters}");
    }
    assert_refused(&server.url("bound", "sslmode=disable"), "SQLSTATE 28000").await;
    assert_refused(&server.url("plain", require), "SQLSTATE 28000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proof_is_bound_and_no_weaker_method_is_taken() {
    let server = Secured::shared().await;
    let full = server.verified("verify-full");
    let bound = format!("{full}&channel_binding=require");
    server.connect("bound", &bound).await.unwrap();
    let unbound = format!("{full}&channel_binding=disable");
    server.connect("bound", &unbound).await.unwrap();
    for role in ["anybody", "hashed", "clear"] {
        assert_refused(&server.url(role, &bound), "`channel_binding=require`").await;
    }
    let plain = server.url("plain", "channel_binding=require");
    assert_refused(&plain, "`channel_binding=require`").await;
    // The password itself is only for a server that has shown its name.
    server.connect("clear", &full).await.unwrap();
    for mode in [server.verified("verify-ca"), "sslmode=require".to_owned()] {
        assert_refused(&server.url("clear", &mode), "in clear text").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_refused_that_is_not_the_one_we_mean() {
    let server = Secured::shared().await;
    let full = server.verified("verify-full");
    let elsewhere = server.url("bound", &full).replace("127.0.0.1", "localhost");
    assert_refused(&elsewhere, "it is not for `localhost:").await;
    assert_refused(&elsewhere, "but for `127.0.0.1`, `db.test`").await;
    let unnamed = elsewhere.replace("verify-full", "verify-ca");
    connect(&unnamed).await.unwrap();

    let stranger = Identity::authority("authority", Signature::EcdsaSha256);
    let strangers = workspace::folder("certificates");
    stranger.write(&strangers, "authority");
    let error = "name the authority that issued it in `sslrootcert`";
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_refused(&server.url("bound", &verified_by(&strangers, mode)), error).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_where_the_server_asks_for_it() {
    let server = Secured::shared().await;
    let full = server.verified("verify-full");
    let certified = with_client(&full, &server.client("certified"));
    server.connect("certified", &certified).await.unwrap();
    assert_refused(&server.url("certified", &full), "SQLSTATE 28000").await;
    assert_refused(&server.url("twofold", &certified), "SQLSTATE 28P01").await;
    let both = with_client(&full, &server.client("twofold"));
    server.connect("twofold", &both).await.unwrap();

    let stranger = Identity::authority("stranger", Signature::EcdsaSha256);
    let unknown = stranger.issue(&Subject::named("certified", &[]));
    let unknown = unknown.write(&server.folder, "unknown");
    let unknown = server.url("certified", &with_client(&full, &unknown));
    let options = ConnectOptions::parse(&Secret::new(unknown)).unwrap();
    // What the client had said already, the server answers with a reset, which may overtake its alert.
    wait_until("both are told why", SOON, async || {
        let (sql, replication) = open_both(&options).await;
        let errors = [sql.err(), replication.err()].map(|error| error.expect("refused"));
        let errors = errors.map(|error| error.to_string());
        match errors.iter().all(|error| error.contains("unknown ca")) {
            true => Ok(()),
            false => Err(errors.join("; ")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_is_named_and_never_shown() {
    let server = Secured::shared().await;
    let full = server.verified("verify-full");
    let files = server.client("unusable");
    let other = server.client("other");
    let mixed = Files {
        key: other.key.clone(),
        ..files.clone()
    };
    let refused = async |files: &Files, text: &str| {
        assert_refused(&server.url("certified", &with_client(&full, files)), text).await;
    };
    refused(&mixed, "`sslkey` can't be used").await;
    refused(&mixed, "is not the key of the certificate in `sslcert`").await;
    let identity = Identity::authority("other", Signature::EcdsaSha256);
    identity.write_encrypted_key(&other.key, "hunter2");
    refused(&mixed, "is encrypted; write the key without a passphrase").await;
    let swapped = Files {
        certificate: files.key.clone(),
        key: files.certificate.clone(),
    };
    refused(&swapped, "`sslcert` can't be used").await;
    std::fs::remove_file(&other.key).unwrap();
    refused(&mixed, "can't be read").await;
    let nobody = verified_by(&server.folder.join("missing"), "verify-full");
    assert_refused(&server.url("bound", &nobody), "`sslrootcert` can't be used").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_every_kind_are_bound_to_and_an_expired_one_is_refused() {
    let mut server = Secured::start(USUAL).await;
    for (signature, binding) in [
        (Signature::RsaSha256, "require"),
        (Signature::RsaSha512, "require"),
        (Signature::EcdsaSha384, "require"),
        // Its signature has no one hash: neither side can bind.
        (Signature::Ed25519, "prefer"),
    ] {
        // It is its own authority, as the manual's example makes it.
        let own = Identity::self_signed(&super::server(), signature);
        own.write(&server.folder, "authority");
        server.postgres.configure_tls(&own, &own);
        server.postgres.reload();
        let parameters = server.verified("verify-full");
        let url = server.url("bound", &format!("{parameters}&channel_binding={binding}"));
        wait_until("the new certificate is served", SOON, async || {
            connect(&url).await
        })
        .await;
    }
    assert_expiry_is_noticed(&mut server).await;
}

async fn assert_expiry_is_noticed(server: &mut Secured) {
    server.authority.write(&server.folder, "authority");
    let expired = Subject {
        is_expired: true,
        ..super::server()
    };
    server
        .postgres
        .configure_tls(&server.authority.issue(&expired), &server.authority);
    server.postgres.reload();
    let url = server.url("bound", &server.verified("verify-full"));
    wait_until(
        "the expired certificate is refused",
        SOON,
        async || match connect(&url).await {
            Err(error)
                if error
                    .to_string()
                    .contains("expired; renew it on the server") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    server.connect("bound", "sslmode=require").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_by_every_mode_that_asks_for_it() {
    let postgres = Postgres::shared(USUAL).await;
    let folder = workspace::folder("certificates");
    Identity::authority("authority", Signature::EcdsaSha256).write(&folder, "authority");
    let url = |parameters: &str| format!("{}?{parameters}", postgres.url("postgres"));
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = format!("offers no TLS and `sslmode={mode}`");
        assert_refused(&url(&verified_by(&folder, mode)), &text).await;
    }
    for mode in ["disable", "allow", "prefer"] {
        let security = connect(&url(&format!("sslmode={mode}"))).await.unwrap();
        assert_eq!(security, Security::PlainText { is_loopback: true });
    }
}
