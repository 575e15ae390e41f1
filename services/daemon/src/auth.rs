//! Tokens: who somebody is, by a key and one pinned algorithm; and who may ask over HTTP.

use crate::{common, exit::Fatal};
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use virtbus_wire::{
    Code, JobError, Timestamp,
    auth::{Claims, Scope},
    control::{Refusal, status},
};

/// The shortest secret: as long as the digest.
const SECRET_BYTES_MIN: usize = 32;
/// How far the clocks of this host and of the issuer may be apart, in seconds.
const LEEWAY_S: u64 = 5;
/// No token is longer, in bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum Algorithm {
    /// With a secret that issuer and service share.
    #[serde(rename = "HS256")]
    Hs256,
    /// Ed25519; the service has the public key.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA over P-256; the service has the public key.
    #[serde(rename = "ES256")]
    Es256,
}

impl Algorithm {
    fn pinned(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
        }
    }

    fn key(self, file: &[u8]) -> Result<DecodingKey, String> {
        let public = |key: jsonwebtoken::errors::Result<DecodingKey>| {
            key.map_err(|_| format!("is not a public key for {self:?} in PEM"))
        };
        match self {
            Self::Hs256 => {
                let secret = file.trim_ascii();
                if secret.len() < SECRET_BYTES_MIN {
                    return Err(format!(
                        "holds {} bytes; a secret has at least {SECRET_BYTES_MIN}",
                        secret.len()
                    ));
                }
                Ok(DecodingKey::from_secret(secret))
            }
            Self::EdDsa => public(DecodingKey::from_ed_pem(file)),
            Self::Es256 => public(DecodingKey::from_ec_pem(file)),
        }
    }
}

/// Why a token isn't accepted. The reasons are for the token's owner, and say nothing of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It's for somebody else.
    #[error("the token is for another service")]
    Audience,
    /// It doesn't say who somebody is.
    #[error("the token lacks a claim, or has one of the wrong kind")]
    Claims,
    /// It isn't one, or isn't signed by whom we believe.
    #[error("the token isn't valid")]
    Invalid,
    /// Nobody can be believed.
    #[error("this service has no key to check tokens with")]
    NoKey,
}

/// What checks tokens.
pub struct Verifier {
    key: Option<DecodingKey>,
    rules: Validation,
}

impl Verifier {
    /// Reads the key.
    ///
    /// # Errors
    /// When it can't be read, or isn't one for the algorithm.
    pub fn new(config: &common::Auth) -> Result<Self, Fatal> {
        let wrong = |reason: String| Fatal::config("auth.key_file", reason);
        let key = match &config.key_file {
            Some(path) => {
                let file = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
                Some(config.algorithm.key(&file).map_err(wrong)?)
            }
            None => None,
        };
        let mut rules = Validation::new(config.algorithm.pinned());
        rules.set_audience(&[&config.audience]);
        rules.set_required_spec_claims(&["exp", "aud", "sub"]);
        rules.validate_nbf = true;
        rules.leeway = LEEWAY_S;
        Ok(Self { key, rules })
    }

    /// Whether there is a key at all.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whom a token names, and what it allows.
    ///
    /// # Errors
    /// When it isn't valid now, for us.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let key = self.key.as_ref().ok_or(TokenError::NoKey)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        decode_header(token).map_err(|_| TokenError::Invalid)?;
        match decode::<Claims>(token, key, &self.rules) {
            Ok(token) => Ok(token.claims),
            Err(error) => Err(reason(error.kind())),
        }
    }
}

fn reason(kind: &ErrorKind) -> TokenError {
    if matches!(kind, ErrorKind::ExpiredSignature) {
        return TokenError::Expired;
    }
    if matches!(kind, ErrorKind::InvalidAudience) {
        return TokenError::Audience;
    }
    if matches!(
        kind,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_)
    ) {
        return TokenError::Claims;
    }
    TokenError::Invalid
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("has_key", &self.has_key())
            .finish_non_exhaustive()
    }
}

/// Lets only those through to these routes who see everything.
pub fn for_overseers(routes: Router, verifier: &Arc<Verifier>) -> Router {
    routes.layer(middleware::from_fn_with_state(verifier.clone(), oversee))
}

async fn oversee(State(verifier): State<Arc<Verifier>>, request: Request, next: Next) -> Response {
    match bearer(&verifier, request.headers()) {
        Ok(claims) if claims.scope.allows(Scope::JobsReadAll) => next.run(request).await,
        Ok(_) => refuse(JobError::new(
            Code::AuthForbidden,
            format!("this needs {}", Scope::JobsReadAll),
        )),
        Err(error) => refuse(error),
    }
}

/// Whom a request's token names: `Authorization: Bearer`.
///
/// # Errors
/// `auth.required` without a token that is valid now, for us.
pub fn bearer(verifier: &Verifier, headers: &HeaderMap) -> Result<Claims, JobError> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(token) = token else {
        return Err(JobError::new(Code::AuthRequired, "a token is needed"));
    };
    let verified = verifier.verify(token);
    verified.map_err(|error| JobError::new(Code::AuthRequired, error.to_string()))
}

/// The answer to a request that is refused.
#[must_use]
pub fn refuse(error: JobError) -> Response {
    let number = StatusCode::from_u16(status(error.code)).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = (number, Json(Refusal { error })).into_response();
    if number == StatusCode::UNAUTHORIZED {
        let how = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
    }
    response
}

/// When a token ends.
#[must_use]
pub fn ends_at(claims: &Claims) -> Timestamp {
    let millis = i64::try_from(claims.exp).unwrap_or(i64::MAX);
    Timestamp::from_millis(millis.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::Utf8PathBuf;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};
    use std::io::Write as _;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn verifier(algorithm: Algorithm, key: &str) -> Result<Verifier, Fatal> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(key.as_bytes()).unwrap();
        let key_file = Some(Utf8PathBuf::try_from(file.path().to_owned()).unwrap());
        Verifier::new(&common::Auth {
            algorithm,
            key_file,
            ..common::Auth::default()
        })
    }

    fn sign(algorithm: jsonwebtoken::Algorithm, key: &EncodingKey, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn hs256(claims: &Value) -> String {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        sign(jsonwebtoken::Algorithm::HS256, &key, claims)
    }

    fn claims() -> Value {
        let exp = jsonwebtoken::get_current_timestamp() + 600;
        json!({"sub": "alice", "tenant": "acme", "scope": "jobs:read:own", "exp": exp, "aud": "virtbus"})
    }

    fn with(key: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[key] = value;
        claims
    }

    fn without(key: &str) -> Value {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(key);
        claims
    }

    #[test]
    fn a_token_that_is_not_ours_now_and_whole_is_refused() {
        // A line break at the end of the file is not part of the secret.
        let verifier = verifier(Algorithm::Hs256, &format!("{SECRET}\n")).unwrap();
        assert_eq!(
            verifier.verify(&hs256(&claims())).unwrap().sub.as_str(),
            "alice"
        );
        let other = EncodingKey::from_secret(b"another secret of the same length");
        let other = sign(jsonwebtoken::Algorithm::HS256, &other, &claims());
        let hs512 = EncodingKey::from_secret(SECRET.as_bytes());
        let hs512 = sign(jsonwebtoken::Algorithm::HS512, &hs512, &claims());
        let whole = hs256(&claims());
        let body = whole.split('.').nth(1).unwrap();
        // {"alg":"none"}
        let unsigned = format!("eyJhbGciOiJub25lIn0.{body}.");
        for (token, expected) in [
            (other, TokenError::Invalid),
            (hs512, TokenError::Invalid),
            (unsigned, TokenError::Invalid),
            (String::new(), TokenError::Invalid),
            ("x".repeat(1 << 20), TokenError::Invalid),
            (hs256(&with("exp", 1.into())), TokenError::Expired),
            (hs256(&with("aud", "other".into())), TokenError::Audience),
            (hs256(&without("aud")), TokenError::Claims),
            (hs256(&without("exp")), TokenError::Claims),
            (hs256(&without("sub")), TokenError::Claims),
            (hs256(&with("sub", "a b".into())), TokenError::Claims),
        ] {
            assert_eq!(verifier.verify(&token), Err(expected), "{token:.200}");
        }
    }

    #[test]
    fn a_public_key_is_no_secret_to_sign_with() {
        let public = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
            -----END PUBLIC KEY-----\n";
        let private = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
            -----END PRIVATE KEY-----\n";
        let verifier = verifier(Algorithm::EdDsa, public).unwrap();
        let forged = EncodingKey::from_secret(public.as_bytes());
        let forged = sign(jsonwebtoken::Algorithm::HS256, &forged, &claims());
        assert_eq!(verifier.verify(&forged), Err(TokenError::Invalid));
        // A pair of its own: it doesn't fit the public key above.
        if let Ok(key) = EncodingKey::from_ed_pem(private.as_bytes()) {
            let other = sign(jsonwebtoken::Algorithm::EdDSA, &key, &claims());
            assert_eq!(verifier.verify(&other), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn a_key_that_cannot_be_one_is_refused_at_start() {
        for (algorithm, key) in [
            (Algorithm::Hs256, "short"),
            (Algorithm::EdDsa, SECRET),
            (Algorithm::Es256, SECRET),
        ] {
            let error = verifier(algorithm, key).err().unwrap();
            assert!(error.to_string().starts_with("auth.key_file: "), "{error}");
        }
    }

    #[test]
    fn without_a_key_nobody_gets_in() {
        let verifier = Verifier::new(&common::Auth::default()).unwrap();
        assert!(!verifier.has_key());
        assert_eq!(verifier.verify(&hs256(&claims())), Err(TokenError::NoKey));
    }
}
