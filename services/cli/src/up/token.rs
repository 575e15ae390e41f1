//! The key that tokens are signed with, and the tokens.

use super::files;
use crate::exit::Failure;
use config::{Config, File, FileFormat};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rand::RngExt as _;
use serde::Deserialize;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};
use virtbus_wire::{
    Tenant, Timestamp, User,
    auth::{Audience, Claims, Scopes},
};

/// What tokens name in `aud`, where the configuration doesn't say otherwise.
const AUDIENCE: &str = "virtbus";
/// Random bytes of a new key.
const KEY_BYTES: usize = 32;

/// What tokens are signed with.
pub(crate) struct Key {
    algorithm: Algorithm,
    key: EncodingKey,
    audience: String,
}

/// What the feedback service is told about tokens; as far as it matters for making one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    algorithm: Option<String>,
    key_file: Option<PathBuf>,
    audience: Option<String>,
}

impl Key {
    /// The secret of a file: a private key (PEM, Ed25519) where it is one.
    ///
    /// # Errors
    /// When it can't be read or used.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = std::fs::read(path)
            .map_err(|error| Failure::failed(format!("can't read the key {shown}: {error}")))?;
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(Failure::failed(format!("the key {shown} is empty")));
        }
        let (algorithm, key) = if text.starts_with(b"-----BEGIN") {
            let key = EncodingKey::from_ed_pem(text);
            let unusable = |error| Failure::failed(format!("the key {shown} can't sign: {error}"));
            (Algorithm::EdDSA, key.map_err(unusable)?)
        } else {
            (Algorithm::HS256, EncodingKey::from_secret(text))
        };
        Ok(Self {
            algorithm,
            key,
            audience: AUDIENCE.to_owned(),
        })
    }

    /// A signed token.
    ///
    /// # Errors
    /// When the key can't sign.
    pub(crate) fn mint(&self, claims: &Claims) -> Result<String, Failure> {
        let mut claims = claims.clone();
        claims.aud = Audience::One(self.audience.clone());
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)
            .map_err(|error| Failure::failed(format!("can't sign: {error}")))
    }
}

/// What a token says.
pub(crate) fn claims(user: &User, tenant: Option<&Tenant>, scope: Scopes, ttl: Duration) -> Claims {
    let end = Timestamp::now().after(ttl).as_millis() / 1_000;
    Claims {
        sub: user.clone(),
        tenant: tenant.cloned(),
        scope,
        exp: u64::try_from(end).unwrap_or(0),
        aud: Audience::One(AUDIENCE.to_owned()),
    }
}

/// The key that a feedback service's configuration names.
///
/// # Errors
/// When it names none, or one that only checks.
pub(crate) fn configured(config: &Path) -> Result<Key, Failure> {
    let shown = config.display();
    let read = Config::builder()
        .add_source(File::from(config).format(FileFormat::Toml))
        .build()
        .and_then(|tree| match tree.get::<Auth>("auth") {
            Err(config::ConfigError::NotFound(_)) => Ok(Auth::default()),
            read => read,
        });
    let auth = read.map_err(|error| Failure::failed(format!("can't read {shown}: {error}")))?;
    let path = auth.key_file.ok_or_else(|| {
        Failure::failed(format!("{shown} names no auth.key_file")).hint("say --key FILE")
    })?;
    if !matches!(auth.algorithm.as_deref(), None | Some("HS256")) {
        return Err(Failure::usage("the configured key only checks tokens")
            .hint("say --key FILE with the private key"));
    }
    let mut key = Key::read(&path)?;
    if let Some(audience) = auth.audience {
        key.audience = audience;
    }
    Ok(key)
}

/// Makes a key, unless there is one.
///
/// # Errors
/// When it can't be written.
pub(crate) fn ensure(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let random: [u8; KEY_BYTES] = rand::rng().random();
    let mut text = String::with_capacity(2 * KEY_BYTES + 1);
    for byte in random {
        // Writing to a string can't fail.
        let written = write!(text, "{byte:02x}");
        debug_assert!(written.is_ok());
    }
    files::write_secret(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};
    use virtbus_wire::auth::Scope;

    #[test]
    fn a_token_of_the_configured_key_can_be_checked_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (key, config) = (folder.path().join("key"), folder.path().join("f.toml"));
        ensure(&key).unwrap();
        let before = std::fs::read(&key).unwrap();
        ensure(&key).unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), before);
        let text =
            format!("[auth]\nkey_file = {key:?}\naudience = \"site\"\n[http]\nlisten = \"x\"");
        std::fs::write(&config, text).unwrap();
        let scopes = Scopes::from_iter([Scope::Admin]);
        let user = "alice".parse().unwrap();
        let claims = claims(&user, None, scopes, Duration::from_secs(60));
        let token = configured(&config).unwrap().mint(&claims).unwrap();
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_audience(&["site"]);
        let secret = DecodingKey::from_secret(before.trim_ascii());
        let read = jsonwebtoken::decode::<Claims>(&token, &secret, &rules).unwrap();
        assert_eq!(read.claims.sub, user);
        assert!(read.claims.scope.allows(Scope::QueuesWrite));
    }

    #[test]
    fn a_configuration_without_a_key_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = configured(file.path()).err().unwrap();
        assert!(failure.message.contains("auth.key_file"), "{failure}");
    }
}
