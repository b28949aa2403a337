//! How a store reaches its server: TLS, passwords, sockets, and rights.

use std::path::PathBuf;

use hurdlr_oauth2::store::PostgresStore;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::cluster::Cluster;
use crate::site::{Site, assert_final, assert_names, first_failure, migrated, names, said};

/// A server of its own authority, which takes no connection by TCP without TLS.
pub(crate) struct Secured {
    server: Cluster,
    pub(crate) root: PathBuf,
    /// The certificate of an authority that has nothing to do with the server.
    pub(crate) other_root: PathBuf,
}

impl Secured {
    /// A server whose certificate is for `name`.
    pub(crate) fn start(name: &str) -> Self {
        let server = Cluster::start_with_access(&[], "hostssl all all 127.0.0.1/32 trust");
        let [authority, other] = ["One", "Another"].map(authority);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        server.write("server.crt", &certificate.pem());
        server.write("server.key", &key.serialize_pem());
        let root = server.write("root.crt", &authority.pem());
        let other_root = server.write("other.crt", &other.pem());
        for (setting, file) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")] {
            let path = root.with_file_name(file);
            server.run(&format!("ALTER SYSTEM SET {setting} = '{}'", path.display()));
        }
        server.run("ALTER SYSTEM SET ssl = on");
        server.run("SELECT pg_reload_conf()");
        Self { server, root, other_root }
    }

    /// The URL of the server as `localhost`.
    pub(crate) fn url(&self, parameters: &str) -> String {
        format!("postgres://test@localhost:{}/postgres?{parameters}", self.server.port())
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub(crate) async fn right_ca_and_name_are_accepted() {
    let secured = Secured::start("localhost");
    let url = secured.url(&format!("sslmode=verify-full&sslrootcert={}", secured.root.display()));
    let store = migrated(&url, "secured").await;
    Site::new().exercise(&store).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE ssl AND client_addr IS NOT NULL";
    assert!(secured.server.number(encrypted) > 0, "the store's connections are encrypted");
    store.close().await;
}

/// An operator has to mend each of these faults in another way.
pub(crate) async fn certificate_faults_have_distinct_texts() {
    let [right, misnamed] = ["localhost", "db.example.com"].map(Secured::start);
    let verified = |server: &Secured, root: &str| {
        server.url(&format!("sslmode=verify-full&sslrootcert={root}"))
    };
    let missing = right.root.with_file_name("missing.crt");
    let faults: [(&str, String, &[&[&str]]); 4] = [
        (
            "wrong CA",
            verified(&right, &right.other_root.display().to_string()),
            &[&["certificate"], &["CA", "sslrootcert", "unknown issuer"]],
        ),
        (
            "wrong host name",
            verified(&misnamed, &misnamed.root.display().to_string()),
            &[&["certificate"], &["host name", "hostname"]],
        ),
        (
            "no root",
            right.url("sslmode=verify-full"),
            &[&["certificate"], &["CA", "sslrootcert", "unknown issuer"]],
        ),
        (
            "missing root file",
            verified(&right, &missing.display().to_string()),
            &[&["sslrootcert", "root certificate"], &["not exist", "not found", "missing", "read"]],
        ),
    ];
    let mut texts = Vec::new();
    let mut wrong = Vec::new();
    for (fault, url, groups) in faults {
        let error = first_failure(&url, "secured").await;
        let error = error.unwrap_or_else(|| panic!("accepted: {fault}"));
        println!("{fault}: {} (temporary: {})", said(&error), error.is_temporary());
        if !names(&error, groups) || error.is_temporary() {
            wrong.push(fault);
        }
        texts.push(said(&error));
    }
    assert!(wrong.is_empty(), "not named, or called temporary: {wrong:?}: {texts:#?}");
    // To the client, no root and a wrong one are the same.
    texts.remove(2);
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 3, "{texts:#?}");
}

/// `require` with a root verifies the authority, as libpq does, or is refused.
pub(crate) async fn require_with_root_verifies_the_ca() {
    let secured = Secured::start("db.example.com");
    let url =
        |root: &PathBuf| secured.url(&format!("sslmode=require&sslrootcert={}", root.display()));
    let error = first_failure(&url(&secured.other_root), "secured").await;
    let error = error.expect("another authority's server is not trusted");
    assert_final(&error, &[&["certificate", "sslrootcert"]]);
    // The right one is either taken, whatever the host is called, or refused like that one.
    if let Some(error) = first_failure(&url(&secured.root), "secured").await {
        assert_final(&error, &[&["verify-ca", "verify-full"]]);
    }
}

/// A server with a user `app` whose password is `right-marker`.
pub(crate) fn with_password() -> Cluster {
    let access = "host all all 127.0.0.1/32 scram-sha-256";
    let server = Cluster::start_with_access(&["password_encryption=scram-sha-256"], access);
    server
        .run("CREATE ROLE app LOGIN PASSWORD 'right-marker'; CREATE SCHEMA app AUTHORIZATION app");
    server
}

pub(crate) fn url_with_password(server: &Cluster, password: &str) -> String {
    format!("postgres://app:{password}@127.0.0.1:{}/postgres", server.port())
}

pub(crate) async fn right_password_is_accepted() {
    let server = with_password();
    let store = migrated(&url_with_password(&server, "right-marker"), "app").await;
    Site::new().exercise(&store).await;
    store.close().await;
}

pub(crate) async fn wrong_password_is_named() {
    let server = with_password();
    let url = url_with_password(&server, "wrong-marker");
    let error = first_failure(&url, "app").await.unwrap();
    assert_final(&error, &[&["password", "credentials"]]);
    assert!(!format!("{error:?} {}", said(&error)).contains("marker"), "{error:?}");
}

pub(crate) async fn unix_socket_serves_a_managed_refresh() {
    let store = migrated(&Cluster::shared().socket_url(), "by_socket").await;
    Site::new().exercise(&store).await;
    store.close().await;
}

/// The rights of the docs are enough for everything, and `migrate` has nothing to do.
pub(crate) async fn minimal_rights_are_enough() {
    let server = Cluster::shared();
    migrated(&server.url(), "granted").await.close().await;
    server.run(
        "CREATE ROLE granted LOGIN; \
         GRANT USAGE ON SCHEMA granted TO granted; \
         GRANT SELECT ON granted.hurdlr_schema TO granted; \
         GRANT SELECT, INSERT, UPDATE, DELETE \
         ON granted.hurdlr_tokens, granted.hurdlr_logins TO granted",
    );
    let store = migrated(&server.url().replace("test@", "granted@"), "granted").await;
    Site::new().exercise(&store).await;
    store.close().await;
}

pub(crate) async fn missing_rights_are_named() {
    let server = Cluster::shared();
    migrated(&server.url(), "forbidden").await.close().await;
    server.run("CREATE ROLE forbidden LOGIN");
    let url = server.url().replace("test@", "forbidden@");
    let no_usage = first_failure(&url, "forbidden").await.unwrap();
    server.run("GRANT USAGE ON SCHEMA forbidden TO forbidden");
    server.run("GRANT SELECT ON forbidden.hurdlr_schema TO forbidden");
    let no_select = first_failure(&url, "forbidden").await.unwrap();
    let no_create = first_failure(&url, "nowhere").await.unwrap();
    for error in [no_usage, no_select, no_create] {
        assert_final(&error, &[&["rights", "permission", "may not"]]);
    }
    let store = PostgresStore::at(server.url().replace("test@", "nobody@"));
    let error = store.open_plaintext().await.unwrap_err();
    assert_final(&error, &[&["role", "credentials"]]);
}

pub(crate) async fn unknown_host_is_named() {
    let store = PostgresStore::at("postgres://test@host.invalid/postgres");
    let error = store.open_plaintext().await.unwrap_err();
    assert_names(&error, &[&["lookup", "resolve", "name"]]);
    assert!(error.is_temporary(), "the resolver may be away: {error:?}");
}
