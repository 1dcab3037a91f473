//! Credentials for a registry, as clients send them with what needs them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use image_unpack::Credentials;
use serde_json::json;

/// The value of the header `X-Registry-Auth`.
#[must_use]
pub fn registry_auth(credentials: &Credentials) -> String {
    let body = match credentials {
        Credentials::Password { user, password } => json!({ "username": user, "password": password }),
        Credentials::IdentityToken(token) => json!({ "identitytoken": token }),
        Credentials::RegistryToken(token) => json!({ "registrytoken": token }),
    };
    URL_SAFE.encode(body.to_string())
}
